"""What an action request tells vLLM's scheduler and workers, and how its block stays out of the prefix cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

EXTRA_ARG = "rlvla_action_block"
"""Of vLLM's `SamplingParams.extra_args`, which reach every process of an engine."""


@dataclass(frozen=True, kw_only=True)
class ActionBlock:
    """The last `num_actions + 1` tokens of a prompt, and how to draw the actions."""

    key: str
    """The result is kept under it until it is taken."""
    num_actions: int
    """n: the prompt ends in `<act>` and n slots."""
    temperature: float
    """0 is greedy."""
    seed: int

    def sampling_params(self) -> Any:
        """For one step; the token that vLLM itself draws in it means nothing."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
            extra_args={EXTRA_ARG: vars(self)},
        )

    @classmethod
    def read(cls, sampling_params: Any) -> ActionBlock | None:
        """Of a request's parameters; None where it is autoregressive."""
        extra = sampling_params.extra_args if sampling_params is not None else None
        fields = extra.get(EXTRA_ARG) if extra else None
        return None if fields is None else cls(**fields)


def take_actions(engine: Any, keys: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What vLLM's engine drew for requests that have finished: token ids [n] int32 and logprobs [n] float32 of each."""
    # Every worker has drawn the same. Bytes, since an array does not survive vLLM's transport between processes.
    drawn: list[tuple[bytes, bytes]] = engine.collective_rpc("take_drawn", args=(keys,))[0] if keys else []
    return [(np.frombuffer(ids, np.int32).copy(), np.frombuffer(p, np.float32).copy()) for ids, p in drawn]


def keep_blocks_out_of_prefix_cache() -> None:
    """Give cache blocks that hold a part of an action block a hash that no other request has.

    vLLM's hash says which tokens a cache block holds, and takes for granted that they saw no later ones. The keys and
    values of `<act>` and the slots did; moreover a block whose tokens were found in the cache would not be computed,
    and nothing could be drawn from it. Cache blocks that end before `<act>` are hashed as ever, hence shared.

    Source: `request_block_hasher` in vLLM 0.32 v1/core/kv_cache_utils.py, which looks this function up by name.
    """
    from vllm.v1.core import kv_cache_utils

    original = kv_cache_utils.generate_block_hash_extra_keys
    if hasattr(original, EXTRA_ARG):
        return

    @functools.wraps(original)
    def extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        block = ActionBlock.read(request.sampling_params)
        if block is None or end_token_idx < request.num_prompt_tokens - block.num_actions:
            return keys, next_mm_idx
        return (*(keys or ()), (EXTRA_ARG, request.request_id)), next_mm_idx

    setattr(extra_keys, EXTRA_ARG, True)
    kv_cache_utils.generate_block_hash_extra_keys = extra_keys
