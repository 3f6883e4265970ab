"""A policy without weights, hence without chance: it zooms once, then acts as the seed of the request says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.config import EpisodeConfig
from rlvla.policies.thinker.deciding import Decider
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.tools import load_tools
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.rollout.collect import Job, play_job
from rlvla.rollout.env_thread import EnvThread
from rlvla.types import TaskSpec, Trajectory

ZOOM = '<tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [0, 0, 500, 500]}}</tool>'
TASK = TaskSpec(suite="faulty", task_id=0, init_state_id=3, seed=7)


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


def decider_of(policy: Path, sampler: LookThenAct | None = None, **episode: Any) -> Decider:
    """One that asks such a sampler."""
    config = EpisodeConfig(max_turn_tokens=1024, **episode)
    processor, tools = PolicyProcessor.load(policy), load_tools(config.tools)
    return Decider(sampler=sampler or LookThenAct(policy), processor=processor, tools=tools, config=config)


async def episode(decider: Decider, env: EnvThread, max_attempts: int = 3, task: TaskSpec = TASK) -> Trajectory:
    """Play a job."""
    return await play_job(decider, env, Job(task=task, member=0), max_attempts)


def play(decider: Decider, env: EnvThread, max_attempts: int = 3, task: TaskSpec = TASK) -> Trajectory:
    """The same, from outside an event loop."""
    return asyncio.run(episode(decider, env, max_attempts, task))


def assert_same_play(a: Trajectory, b: Trajectory) -> None:
    """Two trajectories that differ at most in how long they took and in what went wrong on the way."""
    assert (a.end, a.task, a.task.instruction) == (b.end, b.task, b.task.instruction)
    for x, y in zip(a.turns, b.turns, strict=True):
        assert np.array_equal(x.token_ids, y.token_ids)
        assert np.array_equal(x.actions, y.actions)
        assert all(np.array_equal(i, j) for i, j in zip(x.images, y.images, strict=True))
