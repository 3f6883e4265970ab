"""Learner -> samplers: new weights into running engines, versioned, through Ray's object store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlvla.dispatch import get_all


def sync_weights(learners: Sequence[Any], samplers: Sequence[Any], policy_version: int) -> None:
    """Load the learner's weights, or its adapter, into every sampler; returns when all of them act with these.

    A sampler that dies meanwhile gets them when it has been started anew.

    Every learner rank takes part, since under ZeRO-3 each holds a share; rank 0 returns the whole. The driver passes
    the reference on and never holds the weights itself.

    Args:
        learners: LearnerActor handles, rank 0 first.
        samplers: SamplerActor handles.
        policy_version: learner steps behind these weights.
    """
    weights, *others = [learner.changes.remote() for learner in learners]
    loads = [sampler.load_weights.options(max_task_retries=-1) for sampler in samplers]
    get_all([load.remote(weights, policy_version) for load in loads] + others)
