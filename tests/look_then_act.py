"""A policy without weights, hence without chance: it zooms once, then acts as the seed of the request says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.types import Trajectory

ZOOM = '<tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [0, 0, 500, 500]}}</tool>'


class LookThenAct:
    """A `protocols.Sampler`, and what `rlvla.cluster.actors.RaySampler` calls when it is made a Ray actor.

    Args:
        checkpoint: whose tokens it speaks.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._processor = PolicyProcessor.load(checkpoint)

    async def sample(self, request: SampleRequest) -> SampleOutput:
        num_actions = int(np.prod(self._processor.codec.chunk_shape))
        text = ZOOM if len(request.images) == 1 else "<act>" + f"<act_{request.seed % 16}>" * num_actions + "</act>"
        token_ids = self._processor.vocabulary.encode(text)
        return SampleOutput(
            context_ids=self._processor.expand(request.prompt_ids, request.images),
            token_ids=np.array(token_ids, np.int32),
            logprobs=np.full(len(token_ids), -1.0, np.float32),
            policy_version=0,
        )


def assert_same_play(a: Trajectory, b: Trajectory) -> None:
    """Two trajectories that differ at most in how long they took and in what went wrong on the way."""
    assert (a.end, a.task, a.task.instruction) == (b.end, b.task, b.task.instruction)
    for x, y in zip(a.turns, b.turns, strict=True):
        assert np.array_equal(x.token_ids, y.token_ids)
        assert np.array_equal(x.actions, y.actions)
        assert all(np.array_equal(i, j) for i, j in zip(x.images, y.images, strict=True))
