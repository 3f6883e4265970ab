"""Decisions of a thinker outside an episode: with a scripted sampler or a real one, and no env."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from rlvla.config import EpisodeConfig
from rlvla.data.types import Demonstration
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import Decided, Sampler
from rlvla.types import Observation
from tests.trajectories import ScriptedSampler


async def here(function: Callable[[], Any]) -> Any:
    """A `protocols.InEnv` without an env."""
    return function()


def decided(
    processor: PolicyProcessor,
    sampler: Sampler,
    seen: Demonstration,
    *,
    seed: int = 0,
    memory: Any = None,
    **config: Any,
) -> Decided:
    """A decision on what a demonstration saw; every zoom shows its first crop, or its first view."""
    decider = Thinker(processor).decider(sampler, EpisodeConfig(**config))
    crop = (*seen.crops, seen.images[0])[0]
    observation = Observation(
        images=seen.images, proprio=seen.proprio, instruction=seen.instruction, zoom=lambda image, box: crop
    )
    return asyncio.run(decider.decide(observation, here, seed=seed, memory=memory))


def scripted(processor: PolicyProcessor, answers: Sequence[str | Sequence[int]]) -> ScriptedSampler:
    """A sampler that says these texts, or ids."""
    encode = processor.vocabulary.encode
    script = [encode(answer) if isinstance(answer, str) else list(answer) for answer in answers]
    return ScriptedSampler(script=script, expand=processor.expand)


def demonstrated(processor: PolicyProcessor, demo: Demonstration) -> Decided:
    """The decision of a sampler that says what a demonstration says."""
    vocabulary, marks = processor.vocabulary, processor.vocabulary.mark_ids
    ids = [vocabulary.action_ids[bin_] for bin_ in processor.codec.encode(demo.actions)]
    *calls, last = [vocabulary.encode(text) for text in demo.texts]
    end = (
        [[*last, marks["<act>"]], ids]
        if processor.decoding.at_once
        else [[*last, marks["<act>"], *ids, marks["</act>"]]]
    )
    return decided(processor, scripted(processor, [*calls, *end]), demo)
