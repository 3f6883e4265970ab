"""What transformers' Gemma lacks for pi0.5: attention over keys of elsewhere, and norms that a vector scales."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def project(
    attention: nn.Module, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], names: str = "qkv"
) -> list[torch.Tensor]:
    """Queries, keys, values of some tokens, queries and keys after rotation.

    Args:
        attention: with `q_proj`, `k_proj`, `v_proj` and `head_dim`, as transformers' GemmaAttention.
        hidden: [B, T, W].
        rotary: cosines and sines [B, T, D] of the tokens' positions.
        names: which of the three.

    Returns:
        [B, heads, T, D] each.
    """
    made: list[torch.Tensor] = []
    for name in names:
        linear: Any = getattr(attention, f"{name}_proj")
        heads = linear(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        made.append(heads if name == "v" else rotate(heads, *rotary))
    return made


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions as Gemma has them: number i of a head turns with number i + D/2.

    Args:
        heads: [B, heads, T, D].
        cos: [B, T, D], whose halves are equal.
        sin: likewise.
    """
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """One softmax over all keys, each query seeing the same ones.

    Args:
        query: [B, heads, S, D].
        key: [B, kv_heads, T, D]; kv_heads divides heads, and query head h takes `h // (heads / kv_heads)`.
        value: likewise.
        mask: [B, T] bool, keys to see; None: all.

    Returns:
        [B, S, heads * D].
    """
    rows, heads, length, width = query.shape
    # Since all see the same keys, the queries of the heads that share a key are one longer row of queries.
    grouped = query.reshape(rows, key.shape[1], -1, width)
    seen = None if mask is None else mask[:, None, None, :]
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=seen)
    return mixed.reshape(rows, heads, length, width).transpose(1, 2).flatten(2)


class AdaptiveNorm(nn.Module):
    """RMS norm that a vector scales and shifts, and a gate for what follows; pi0.5's adaRMS.

    Args:
        width: of tokens and of the vector.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(width, 3 * width)

    def forward(self, hidden: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, S, W] and vector [B, W] -> tokens [B, S, W] and gate [B, 1, W]."""
        scale, shift, gate = self.dense(condition)[:, None].chunk(3, dim=-1)
        normed = F.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps)
        return (normed * (1 + scale.float()) + shift.float()).type_as(hidden), gate
