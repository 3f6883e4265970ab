"""The action blocks among the tokens of one step of vLLM's engine: where they lie, and how actions are drawn.

The same numbers on every device, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlvla.samplers.vllm.plugin.request import ActionBlock


class ActionBlockError(RuntimeError):
    """vLLM cannot serve action blocks as they must be; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One action request whose block is computed in this step."""

    index: int
    """Of the request in the batch."""
    end: int
    """One behind its last token among the step's."""
    seq_len: int
    """Tokens of its prompt, slots included."""
    block: ActionBlock


@dataclass(kw_only=True)
class Step:
    """The action requests of a step and what its layers need to attend their blocks."""

    rows: list[Row]
    tokens: torch.Tensor
    """[T] int64, on the device: the blocks' tokens, request by request."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Layer -> its backend's metadata of the blocks alone."""
    num_attended: int = 0
    """Layers that have attended the blocks."""


def plan(runner: Any, num_scheduled: Mapping[str, int]) -> Step | None:
    """Find the blocks in the batch that vLLM's runner has prepared; None where it has none.

    `num_scheduled` has the tokens that this step computes, by request.

    Raises:
        ActionBlockError: a block is torn: part of it came out of the cache or is left to a later step.
    """
    rows: list[Row] = []
    end = 0
    for index, request_id in enumerate(runner.input_batch.req_ids if num_scheduled else ()):
        request = runner.requests[request_id]
        end += num_scheduled[request_id]
        block = ActionBlock.read(request.sampling_params)
        if block is None:
            continue
        first = int(runner.input_batch.num_computed_tokens_cpu[index])
        last = first + num_scheduled[request_id]
        start = request.num_prompt_tokens - block.num_actions - 1
        if last <= start or first >= request.num_prompt_tokens:
            continue  # a chunk of the prefix
        if first > start or last < request.num_prompt_tokens:
            raise ActionBlockError(
                f"tokens {start} to {request.num_prompt_tokens - 1} are an action block, this step computes {first} to "
                f"{last - 1}: register rlvla.samplers.vllm.plugin in vLLM's processes (install rlvla, leave "
                "VLLM_PLUGINS unset), and switch chunked prefill off or raise max_num_batched_tokens"
            )
        rows.append(Row(index=index, end=end, seq_len=last, block=block))
    if not rows:
        return None
    tokens = np.concatenate([np.arange(row.end - row.block.num_actions - 1, row.end) for row in rows])
    return Step(rows=rows, tokens=torch.from_numpy(tokens).to(runner.device))


def blocks_alone(step: Step, common: Any) -> Any:
    """`CommonAttentionMetadata` of the batch, which vLLM's backends get, cut down to the blocks, causal no more."""
    device = common.seq_lens.device
    lengths = np.array([row.block.num_actions + 1 for row in step.rows], np.int32)
    starts_cpu = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))
    rows_cpu = torch.tensor([row.index for row in step.rows])
    rows = rows_cpu.to(device)
    seq_lens_cpu = torch.tensor([row.seq_len for row in step.rows], dtype=torch.int32)
    return common.replace(
        query_start_loc=starts_cpu.to(device),
        query_start_loc_cpu=starts_cpu,
        seq_lens=seq_lens_cpu.to(device),
        seq_lens_cpu_upper_bound=seq_lens_cpu,
        num_reqs=len(step.rows),
        num_actual_tokens=len(step.tokens),
        max_query_len=int(lengths.max()),
        max_seq_len=int(seq_lens_cpu.max()),
        block_table_tensor=common.block_table_tensor[rows],
        slot_mapping=common.slot_mapping[step.tokens],
        positions=common.positions[step.tokens],
        is_prefilling=torch.ones(len(step.rows), dtype=torch.bool),
        causal=False,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


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
