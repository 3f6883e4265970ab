"""Rows of an embedding or a head that are trained beside frozen ones, without a copy of all of them in each forward."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn


class TrainedRows(TrainableTokensLayer):
    """peft's layer with another forward: peft's copies the whole matrix, and its gradient is as large."""

    def forward_adapters(self, x: torch.Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Ids [...] -> embeddings [..., D], or states [..., D] -> logits [..., V]; peft has one adapter on it."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged or not active_adapters:
            return result
        (adapter,) = active_adapters
        ids = torch.tensor(self.token_indices[adapter], device=x.device)
        rows = self.trainable_tokens_delta[adapter].to(result.dtype)
        if isinstance(self.base_layer, nn.Embedding):
            places = torch.searchsorted(ids, x).clamp(max=len(ids) - 1)
            return torch.where((ids[places] == x)[..., None], rows[places], result)
        result[..., ids] = nn.functional.linear(x, rows)
        return result


def use_trained_rows(wrapped: Any) -> None:
    """Give a peft model this forward; ids must be in order."""
    for module in wrapped.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TrainedRows
