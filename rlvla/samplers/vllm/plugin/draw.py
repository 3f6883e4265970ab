"""Draw actions from logits: the same numbers on every device, whatever else is in the batch."""

from __future__ import annotations

import torch


def uniforms(seed: int, num_actions: int) -> torch.Tensor:
    """[n] float64 in [0, 1), of a generator on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_actions, generator=generator, dtype=torch.float64)


def draw(logits: torch.Tensor, temperatures: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one bin per row of logits [m, bins] by inverting the cumulative distribution at uniforms [m] in [0, 1).

    Returns:
        bins [m] int64; their logprobs [m] float32 at the temperatures [m]; 0 is greedy, with logprobs at 1.
    """
    is_greedy = temperatures == 0
    scaled = logits.float() / torch.where(is_greedy, 1.0, temperatures)[:, None]
    logprobs = scaled.log_softmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    # The sum is 1 but for rounding. The first bin whose cumulative probability exceeds the target is never one of
    # probability 0; rounding alone could put the target at the very end.
    target = (uniforms * cumulative[:, -1])[:, None]
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    bins = torch.where(is_greedy, logprobs.argmax(-1), drawn)
    return bins, logprobs.gather(-1, bins[:, None])[:, 0]
