"""Whole decisions in front of a sampler: a prompt, thoughts and looks of a fixed length, and the actions."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import Sampler, SampleRequest

INSTRUCTION = "put the red block into the bowl"
CALL_TOKENS = 24
"""Sampled up to a look: a short thought and the call itself."""
THOUGHT_TOKENS = 36
"""Sampled behind the last picture."""
NUM_LOOKS = {"zoom": 1, "think": 0, "act": 0}
"""`episode.mode` -> looks of a decision, as many as a key frame's demonstration has at least."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision of a policy that says so many tokens, whatever they are: its weights are random."""

    processor: PolicyProcessor
    mode: str
    """Of `EpisodeConfig`."""
    is_parallel: bool
    """Its actions come out of one forward, else they are sampled like text."""
    seed: int

    async def take(self, sampler: Sampler) -> None:
        """Ask for all of it, one request after the other."""
        processor, marks = self.processor, self.processor.vocabulary.mark_ids
        pictures = np.random.default_rng(self.seed).integers(0, 256, (2, 64, 64, 3), np.uint8)
        request = SampleRequest(
            prompt_ids=processor.prompt_ids(INSTRUCTION, 1),
            images=(pictures[0],),
            stop_ids=(),
            max_tokens=CALL_TOKENS,
            temperature=1.0,
            seed=self.seed,
        )
        if NUM_LOOKS[self.mode]:
            request = await self._text(sampler, request, CALL_TOKENS)
            looked = (*request.prompt_ids, *processor.result_ids(image=True))
            request = replace(request, prompt_ids=looked, images=tuple(pictures))
        if self.mode != "act":
            request = await self._text(sampler, request, THOUGHT_TOKENS)
        request = replace(request, prompt_ids=(*request.prompt_ids, marks["<act>"]))
        await sampler.sample(actions(request, processor, is_parallel=self.is_parallel))

    async def _text(self, sampler: Sampler, request: SampleRequest, num_tokens: int) -> SampleRequest:
        """The request with what was sampled behind it."""
        banned = tuple(self.processor.vocabulary.mark_ids.values())  # a thought holds no other mark
        said = await sampler.sample(replace(request, max_tokens=num_tokens, banned_ids=banned))
        return replace(request, prompt_ids=(*request.prompt_ids, *said.token_ids.tolist()))


def actions(request: SampleRequest, processor: PolicyProcessor, *, is_parallel: bool) -> SampleRequest:
    """The request that asks for one chunk behind the `<act>` that a context ends in."""
    vocabulary, num_actions = processor.vocabulary, processor.num_action_tokens
    if is_parallel:
        return replace(request, action_ids=vocabulary.action_ids, slot_ids=vocabulary.slot_ids)
    return replace(request, max_tokens=num_actions)


async def measure(sampler: Sampler, decisions: Sequence[Decision], rounds: int) -> dict[str, float]:
    """Median and 95th percentile of milliseconds until all decisions of a round are taken, and the engine's steps.

    Args:
        sampler: with a count `num_steps`, if it has an engine.
        decisions: of one round, all at once; each round sees other pictures.
        rounds: measured, behind one that is not.
    """
    times, steps = [], 0
    for number in range(rounds + 1):
        asked = [replace(decision, seed=decision.seed + 1000 * number) for decision in decisions]
        before, started = getattr(sampler, "num_steps", 0), time.perf_counter()
        await asyncio.gather(*(decision.take(sampler) for decision in asked))
        times.append(1000 * (time.perf_counter() - started))
        steps = getattr(sampler, "num_steps", 0) - before
    return {"steps": steps, "ms": statistics.median(times[1:]), "ms_p95": float(np.percentile(times[1:], 95))}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `decisions` in the result, to read."""
    lines = [f"{'sampler':>13} {'mode':>6} {'at once':>8} {'parallel':>20} {'autoregressive':>20} {'speed-up':>9}"]
    for row in rows:
        ways = [f"{row[way]['steps']:>4} steps {row[way]['ms']:>7.1f} ms" for way in ("parallel", "autoregressive")]
        place = f"{row['sampler']:>13} {row['mode']:>6} {row['requests']:>8}"
        lines.append(f"{place} {ways[0]:>20} {ways[1]:>20} {row['speed_up']:>8.1f}x")
    return "\n".join(lines)
