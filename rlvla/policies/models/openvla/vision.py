"""The vision towers of OpenVLA, and the projector behind them.

Parameters have the names and shapes of timm's `VisionTransformer` (timm 0.9.16 models/vision_transformer.py), but for
LayerScale, whose `gamma` is published as `scale_factor` (openvla vla-scripts/extern/convert_openvla_weights_to_hf.py).
B images, P patches, T = P + prefix tokens, D channels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from rlvla.policies.models.openvla.config import OpenVLAConfig, TowerConfig

_EPS = 1e-6
"""Of timm's norms; torch's own is 1e-5."""


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., D] -> [.., D]."""
        return x * self.scale_factor


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, for SigLIP too: timm 0.9 knew no other there."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., D] -> [.., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Every token sees every token; one fused layer makes queries, keys and values."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm1 = nn.LayerNorm(size, _EPS)
        self.attn = Attention(size, config.num_attention_heads)
        self.ls1 = LayerScale(size) if config.has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(size, _EPS)
        self.mlp = Mlp(size, config.intermediate_size)
        self.ls2 = LayerScale(size) if config.has_layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PoolingHead(nn.Module):
    """The weights of timm's `AttentionPoolLatent`: checkpoints carry them, features do not need them."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, size))
        self.q = nn.Linear(size, size)
        self.kv = nn.Linear(size, 2 * size)
        self.proj = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, _EPS)
        self.mlp = Mlp(size, inner)


class PatchEmbed(nn.Module):
    """Patches of pixels -> tokens."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, P, D], row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """One tower: images -> the patches behind its last block but one, not normalised."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.image_size = config.image_size
        self.num_prefix_tokens = config.has_class_token + config.num_registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size)) if config.has_class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, size)) if config.num_registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches, size))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(size, _EPS)
        self.attn_pool = PoolingHead(size, config.intermediate_size) if config.has_pooling_head else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] normalised -> [B, P, D]; raises ValueError where S is not the position embeddings'."""
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"pixel_values are {list(pixels.shape[-2:])}, this tower takes {self.image_size} squared")
        # Positions are of patches alone (timm's `no_embed_class`); class token first, then the registers.
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.num_prefix_tokens :]

    def unused(self) -> list[nn.Parameter]:
        """Parameters that no feature depends on: behind the last block but one."""
        modules = [self.blocks[-1], self.norm, self.attn_pool]
        return [parameter for module in modules if module is not None for parameter in module.parameters()]


class VisionBackbone(nn.Module):
    """One tower, or two whose features lie side by side in the channels."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        towers = config.towers
        self.featurizer = VisionTransformer(towers[0])
        self.fused_featurizer = VisionTransformer(towers[1]) if len(towers) == 2 else None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3 per tower, S, S], the same image normalised for each -> [B, P, D], D the sum of the towers'.

        Raises:
            ValueError: another number of channels.
        """
        towers = [self.featurizer] if self.fused_featurizer is None else [self.featurizer, self.fused_featurizer]
        if pixel_values.shape[1] != 3 * len(towers):
            raise ValueError(f"pixel_values have {pixel_values.shape[1]} channels, need {3 * len(towers)}")
        features = [tower(pixels) for tower, pixels in zip(towers, pixel_values.split(3, dim=1), strict=True)]
        return torch.cat(features, dim=-1)


class Projector(nn.Module):
    """Features of patches -> embeddings of tokens: an MLP of two layers, or of three behind two towers."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        towers = config.towers
        size, text_size = sum(tower.hidden_size for tower in towers), config.get_text_config().hidden_size
        inner = 4 * size if len(towers) == 2 else text_size
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, text_size)
        self.fc3 = nn.Linear(text_size, text_size) if len(towers) == 2 else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, P, D of the towers] -> [B, P, D of the language model]."""
        x = self.fc2(F.gelu(self.fc1(features)))
        return x if self.fc3 is None else self.fc3(F.gelu(x))
