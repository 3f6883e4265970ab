"""ACoT-VLA's implicit action reasoner, and how the head's tokens take in what both reasoners say (AGP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rlvla.config import ACoTConfig
from rlvla.policies.acot.trunk import Prefix


def mix(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of several heads: [B, S, W], [B, T, W] twice, and [B, T] bool, keys to see -> [B, S, W]."""
    split = [tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value)]
    seen = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(*split, attn_mask=seen).transpose(1, 2).flatten(2)


class ImplicitReasoner(nn.Module):
    """Pools the keys and values of each layer of the trunk with a learned query (`DownsampleExtractor` of ACoT's code).

    Keys and values are narrowed first, by projections that `implicit_group` layers share.
    """

    def __init__(self, cfg: ACoTConfig) -> None:
        super().__init__()
        self._heads, self._group, self._is_masked = cfg.implicit_heads, cfg.implicit_group, cfg.mask_implicit
        width, narrow, groups = cfg.kv_heads * cfg.head_width, cfg.implicit_width, cfg.layers // cfg.implicit_group
        self.queries = nn.Parameter(torch.randn(cfg.layers, width))
        self.q_proj = nn.ModuleList(nn.Linear(width, narrow) for _ in range(groups))
        self.k_proj = nn.ModuleList(nn.Linear(width, narrow) for _ in range(groups))
        self.v_proj = nn.ModuleList(nn.Linear(width, narrow) for _ in range(groups))
        self.out_proj = nn.ModuleList(nn.Linear(narrow, cfg.expert_width) for _ in range(groups))

    def forward(self, prefix: Prefix) -> torch.Tensor:
        """[B, layers, W]."""
        mask = prefix.mask if self._is_masked else None
        pooled = []
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            group = layer // self._group
            query = self.q_proj[group](self.queries[layer]).expand(len(keys), 1, -1)
            key = self.k_proj[group](keys.transpose(1, 2).flatten(2))
            value = self.v_proj[group](values.transpose(1, 2).flatten(2))
            pooled.append(self.out_proj[group](mix(query, key, value, self._heads, mask)))
        return torch.cat(pooled, dim=1)


class CrossAttention(nn.Module):
    """Tokens attend to others (`UnifiedAttentionModule` of ACoT's code): projected twice, no residual, no norm.

    Args:
        width_in: of both.
        width: inside and of the result.
        heads: of the attention.
    """

    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.q_proj = nn.Linear(width_in, width)
        self.kv_proj = nn.Linear(width_in, 2 * width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc_out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """[B, S, W_in] and [B, T, W_in] -> [B, S, W]."""
        key, value = self.kv_proj(others).chunk(2, dim=-1)
        mixed = mix(self.query(self.q_proj(tokens)), self.key(key), self.value(value), self._heads)
        return self.fc_out(self.out(mixed))


class Guide(nn.Module):
    """Action-guided prediction: the head's tokens ask both reasoners, and what they hear is fused.

    The explicit reasoner's tokens have no place here, they are a set; order comes in by the head's positions.
    """

    def __init__(self, cfg: ACoTConfig) -> None:
        super().__init__()
        width, heads, self._has_residual = cfg.expert_width, cfg.guide_heads, cfg.guide_residual
        self.explicit = CrossAttention(width, width, heads) if cfg.has_explicit else None
        self.implicit = CrossAttention(width, width, heads) if cfg.has_implicit else None
        if self.explicit and self.implicit:
            self.explicit_proj = nn.Linear(2 * width, width)
            self.implicit_proj = nn.Linear(2 * width, width)
            self.fusion: nn.Module = CrossAttention(2 * width, width, heads)
        else:  # linear throughout, as their code has it
            self.fusion = nn.Sequential(nn.Linear(2 * width, width), nn.Linear(width, width), nn.Linear(width, width))

    def forward(
        self, tokens: torch.Tensor, explicit: torch.Tensor | None, implicit: torch.Tensor | None
    ) -> torch.Tensor:
        """Tokens [B, S, W], those of the reference motion [B, R, W], what was pooled [B, layers, W] -> [B, S, W]."""
        heard = []
        if self.explicit is not None:
            heard.append(torch.cat([tokens, self.explicit(tokens, explicit)], dim=-1))
        if self.implicit is not None:
            heard.append(torch.cat([tokens, self.implicit(tokens, implicit)], dim=-1))
        if len(heard) == 1:
            fused = self.fusion(heard[0])
        else:
            both = torch.cat([self.explicit_proj(heard[0]), self.implicit_proj(heard[1])], dim=-1)
            fused = self.fusion(both, both)
        return tokens + fused if self._has_residual else fused
