"""The float32 masters that DeepSpeed's optimizers update, of parameters that its engine holds in bfloat16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param


@contextlib.contextmanager
def keeping_masters(trained: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Start DeepSpeed's engine; float32 parameters of a bfloat16 model keep their bits in its float32 masters.

    It takes the masters from parameters that it has rounded before.

    Args:
        trained: name -> parameter.
    """
    exact = {name: p.detach().clone() for name, p in trained.items() if p.dtype == torch.float32}
    yield
    for name, value in exact.items():
        if trained[name].dtype != torch.float32:
            safe_set_full_fp32_param(trained[name], value.to(trained[name].device))


def masters(trained: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Name -> float32 value, which the optimizer updates; not of ZeRO-3. Every rank must call."""
    full = {name: safe_get_full_fp32_param(p) for name, p in trained.items()}
    return {name: trained[name].detach() if value is None else value for name, value in full.items()}
