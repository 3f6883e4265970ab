"""The trunk: what is seen and asked for, as keys and values of each layer of a language model; pi0.5's PaliGemma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GemmaConfig, GemmaModel, SiglipVisionConfig, SiglipVisionModel

from rlvla.config import ACoTConfig
from rlvla.policies.acot.attention import attend, project

BLACK = -1.0
"""Of pixels that go from -1 to 1."""


class Prefix(NamedTuple):
    """What the experts attend to of a trunk; T tokens, those of the pictures first, then those of the text."""

    keys: Sequence[torch.Tensor]
    """Of each layer, [B, kv_heads, T, D], rotated."""
    values: Sequence[torch.Tensor]
    """Likewise."""
    mask: torch.Tensor
    """[B, T] bool, True where a token is no padding and of no masked picture."""
    implicit: torch.Tensor | None = None
    """[B, layers, W], what the implicit reasoner has pooled of each layer; None: there is no such reasoner."""

    @property
    def lengths(self) -> torch.Tensor:
        """[B], unmasked tokens, hence the position of what comes next."""
        return self.mask.sum(1)


class Trunk(nn.Module):
    """SigLIP's vision tower, a projection, and Gemma's language model; names as in pi0.5's torch weights.

    Args:
        cfg: sizes.
        num_text_tokens: size of the vocabulary.
    """

    def __init__(self, cfg: ACoTConfig, num_text_tokens: int) -> None:
        super().__init__()
        self.image_size = cfg.image_size
        self.vision_tower = SiglipVisionModel(_vision_config(cfg))
        self.projector = nn.Linear(cfg.vision_width, cfg.width)
        self.language_model = GemmaModel(gemma_config(cfg, num_text_tokens))
        # Nobody reads the last layer's output, only its keys and values: these weights have no gradient.
        last: Any = self.language_model.layers[-1]
        for unused in (last.self_attn.q_proj, last.self_attn.o_proj, last.post_attention_layernorm, last.mlp):
            unused.requires_grad_(False)
        self.language_model.norm.requires_grad_(False)

    def forward(
        self, images: torch.Tensor, image_mask: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor
    ) -> Prefix:
        """Keys and values, of tokens that all see each other.

        A position counts the tokens before it that are seen. So a picture that is masked, openpi's third camera of
        LIBERO, may as well be left out: we take the cameras that there are.

        Args:
            images: [B, N, 3, H, W], from -1 to 1.
            image_mask: [B, N] bool, pictures that there are.
            text: [B, L] int64.
            text_mask: [B, L] bool.
        """
        tokens, mask = self.embed(images, image_mask, text, text_mask)
        positions = mask.cumsum(1) - 1
        hidden, rotary = tokens, self.language_model.rotary_emb(tokens, positions)
        keys, values = [], []
        layers: Sequence[Any] = [*self.language_model.layers]
        *inner, last = layers
        for layer in inner:
            query, key, value = project(layer.self_attn, layer.input_layernorm(hidden), rotary)
            hidden = hidden + layer.self_attn.o_proj(attend(query, key, value, mask))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            keys.append(key)
            values.append(value)
        key, value = project(last.self_attn, last.input_layernorm(hidden), rotary, "kv")
        return Prefix(keys=(*keys, key), values=(*values, value), mask=mask)

    def embed(
        self, images: torch.Tensor, image_mask: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, T, W] and their mask [B, T]; arguments as in `forward`."""
        rows, num_images = images.shape[:2]
        pixels = fit(images.flatten(0, 1), self.image_size)
        seen = self.projector(self.vision_tower(pixels).last_hidden_state)
        seen = seen.unflatten(0, (rows, num_images))
        seen_mask = image_mask[:, :, None].expand(-1, -1, seen.shape[2]).flatten(1)
        said = self.language_model.embed_tokens(text)
        return torch.cat([seen.flatten(1, 2), said], dim=1), torch.cat([seen_mask, text_mask], dim=1)


def gemma_config(cfg: ACoTConfig, num_text_tokens: int) -> GemmaConfig:
    """Of the language model, for transformers."""
    return GemmaConfig(
        vocab_size=num_text_tokens,
        hidden_size=cfg.width,
        intermediate_size=cfg.mlp,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        head_dim=cfg.head_width,
        initializer_range=cfg.initializer_range,
        use_bidirectional_attention=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def _vision_config(cfg: ACoTConfig) -> SiglipVisionConfig:
    config = SiglipVisionConfig(
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        num_hidden_layers=cfg.vision_layers,
        hidden_size=cfg.vision_width,
        num_attention_heads=cfg.vision_heads,
        intermediate_size=cfg.vision_mlp,
    )
    config.vision_use_head = False  # it has no field of that name, and is asked for it
    return config


def fit(images: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures [M, 3, H, W] as squares: shrunk or enlarged to fit, and padded with black evenly around (openpi)."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / max(height, width)
    inner = (max(1, int(height * scale)), max(1, int(width * scale)))
    # In float32: a CPU shrinks no pictures in bfloat16.
    resized = F.interpolate(images.float(), inner, mode="bilinear", align_corners=False, antialias=True)
    above, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    padding = (left, size - inner[1] - left, above, size - inner[0] - above)
    return F.pad(resized.clamp(-1, 1), padding, value=BLACK).to(images.dtype)
