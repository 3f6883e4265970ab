"""A flow expert, pi0.5's: noisy actions and a time -> a velocity, looking at a trunk's keys and values."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRotaryEmbedding

from rlvla.config import ACoTConfig
from rlvla.policies.acot.attention import AdaptiveNorm, attend, project
from rlvla.policies.acot.flow import bounded_std
from rlvla.policies.acot.trunk import Prefix

_SHORTEST, _LONGEST = 4e-3, 4.0
"""Periods of a time's waves."""
_NOISE_WIDTHS = (128, 64)
"""Hidden widths of the network that says how much noise Flow-Noise adds (RLinf's pi_RL)."""


class Attention(nn.Module):
    """Projections of one layer, named as transformers' GemmaAttention names them."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner, outer = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, outer, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, outer, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)


class Layer(nn.Module):
    """A Gemma layer with adaptive norms, whose tokens see those of a prefix and each other."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = AdaptiveNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = AdaptiveNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        condition: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        before: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """One layer.

        Args:
            hidden: [B, S, W].
            condition: [B, W], the time.
            rotary: cosines and sines [B, S, D].
            before: keys and values [B, kv_heads, T, D] of the prefix.
            mask: [B, T + S] bool.
        """
        normed, gate = self.input_layernorm(hidden, condition)
        query, *own = project(self.self_attn, normed, rotary)
        key, value = (torch.cat(pair, dim=2) for pair in zip(before, own, strict=True))
        hidden = hidden + gate * self.self_attn.o_proj(attend(query, key, value, mask))
        normed, gate = self.post_attention_layernorm(hidden, condition)
        return hidden + gate * self.mlp(normed)


class FlowExpert(nn.Module):
    """Gemma's layers over noisy actions; one predicts the reference motion, another one the actions.

    Args:
        cfg: sizes.
        action_size: A, numbers of an action.
    """

    def __init__(self, cfg: ACoTConfig, action_size: int) -> None:
        super().__init__()
        width = cfg.expert_width
        config = GemmaConfig(
            hidden_size=width,
            intermediate_size=cfg.expert_mlp,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            head_dim=cfg.head_width,
        )
        self.action_in = nn.Linear(action_size, width)
        self.action_out = nn.Linear(width, action_size)
        self.time_in = nn.Linear(width, width)
        self.time_out = nn.Linear(width, width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(cfg.layers))
        self.norm = AdaptiveNorm(width, config.rms_norm_eps)
        self.rotary_emb = GemmaRotaryEmbedding(config)
        sizes = (width, *_NOISE_WIDTHS)
        hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        self.noise = nn.Sequential(*hidden)
        self.noise_out = nn.Linear(sizes[-1], action_size)

    def embed(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions [B, S, A], noisy or not -> tokens [B, S, W]."""
        return self.action_in(actions.to(self.action_in.weight.dtype))

    def forward(self, tokens: torch.Tensor, t: torch.Tensor, prefix: Prefix) -> torch.Tensor:
        """Tokens [B, S, W] at times [B] -> hidden states [B, S, W]."""
        waves = time_waves(t, tokens.shape[-1]).type_as(tokens)
        condition = F.silu(self.time_out(F.silu(self.time_in(waves))))
        positions = prefix.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        rotary = self.rotary_emb(tokens, positions)
        mask = F.pad(prefix.mask, (0, tokens.shape[1]), value=True)
        hidden = tokens
        for layer, *before in zip(self.layers, prefix.keys, prefix.values, strict=True):
            hidden = layer(hidden, condition, rotary, before, mask)
        return self.norm(hidden, condition)[0]

    def velocity(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states -> velocities [B, S, A], float32."""
        return self.action_out(hidden).float()

    def noise_std(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states -> standard deviations [B, S, A] of a step of Flow-Noise, float32."""
        return bounded_std(self.noise_out(self.noise(hidden)).float())


def time_waves(t: torch.Tensor, width: int) -> torch.Tensor:
    """Times [B] -> [B, W] float32, the sines of `width / 2` periods from 0.004 to 4, then their cosines; pi0."""
    share = torch.linspace(0, 1, width // 2, device=t.device)
    period = _SHORTEST * (_LONGEST / _SHORTEST) ** share
    angle = 2 * math.pi * t.float()[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
