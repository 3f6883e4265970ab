"""Learner -> samplers: new weights into running engines, versioned, through Ray's object store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlvla.cluster.dispatch import get_all


def sync_weights(
    learners: Sequence[Any],
    samplers: Sequence[Any],
    policy_version: int,
    *,
    learner_deadline_s: float,
    actor_deadline_s: float,
) -> None:
    """Load the learner's weights, or its adapter, into every sampler; returns when those that fare well act with these.

    A sampler that dies meanwhile gets them when it has been started anew. One that fails or hangs does not have them
    then, as its `status` says.

    Every learner rank takes part, since under ZeRO-3 each holds a share; rank 0 returns a reference to the whole. The
    driver passes it on and never holds the weights itself.

    Args:
        learners: LearnerActor handles, rank 0 first.
        samplers: SamplerActor handles.
        policy_version: learner steps behind these weights.
        learner_deadline_s: for the learners to gather them.
        actor_deadline_s: for the samplers to take them.

    Raises:
        NoAnswerError: of the learners.
        ValueError: the weights are not those of the samplers' checkpoint.
    """
    (weights,), *_ = get_all([learner.changes.remote() for learner in learners], learner_deadline_s)
    loads = [sampler.load_weights.options(max_task_retries=-1).remote(weights, policy_version) for sampler in samplers]
    for loaded in ray.wait(loads, num_returns=len(loads), timeout=actor_deadline_s)[0]:
        try:
            ray.get(loaded)
        except RayTaskError as error:
            if isinstance(error, ValueError):
                raise
