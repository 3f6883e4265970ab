"""The built-in simulator in a RolloutActor, one of whose env processes is stopped; and an actor that is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rlvla.cluster import start_ray
from rlvla.config import ClusterConfig, EnvConfig, EpisodeConfig
from rlvla.rollout import Job, RolloutActor, TaskStream
from rlvla.types import EndReason
from tests.look_then_act import LookThenAct, assert_same_play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 8.0
ENV = EnvConfig(tasks=("press",), kwargs={"zoom_source": "render"}, deadline_s=DEADLINE_S)


@pytest.fixture(scope="module")
def actor(tiny_policy: Path) -> Iterator[Any]:
    """Three envs, each in a process of its own."""
    with pytest.MonkeyPatch.context() as environment:
        # Ray's workers run at 15: beside other work on the machine they would meet their deadlines by chance.
        environment.setenv("RAY_worker_niceness", "0")
        start_ray(ClusterConfig())
    sampler = ray.remote(LookThenAct).options(num_cpus=0, max_concurrency=100).remote(tiny_policy)
    actor = ray.remote(RolloutActor).options(num_cpus=0)
    yield actor.remote(sampler, tiny_policy, ENV, EpisodeConfig(), num_envs=3)
    ray.shutdown()


def family(actor: Any) -> tuple[psutil.Process, set[psutil.Process]]:
    """The actor's process, and the env processes that it has started, without their server."""
    process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))
    servers = [child for child in process.children() if "rlvla.env_server" in child.cmdline()]
    return process, {child for server in servers for child in server.children()}


def play(actor: Any, jobs: list[Job]) -> list[Any]:
    """All trajectories, in the order in which they ended."""
    return [ray.get(ref)[1] for ref in actor.stream.remote(jobs)]


def test_one_stopped_env_process_keeps_no_other_env_waiting(actor: Any) -> None:
    jobs = [Job(task=task, member=0) for task in TaskStream(config=ENV, seed=0).take(7)]
    stream, ended = actor.stream.remote(jobs), {}
    index, ended[index] = ray.get(next(stream))  # all three are playing
    _, envs = family(actor)
    assert len(envs) == 3
    stopped, stopped_at = envs.pop(), time.monotonic()
    stopped.suspend()
    for ref in stream:
        index, trajectory = ray.get(ref)
        ended[index] = trajectory
        if trajectory.num_crashes:
            assert len(ended) == len(jobs)  # the last: the others were not held up
            assert time.monotonic() - stopped_at > DEADLINE_S
        else:
            assert time.monotonic() - stopped_at < DEADLINE_S
    [replayed] = [i for i, trajectory in ended.items() if trajectory.num_crashes]
    assert ended[replayed].num_replays == 1
    assert psutil.wait_procs([stopped], timeout=30)[1] == []
    _, now = family(actor)
    assert len(now) == 3
    assert envs < now
    [again] = play(actor, [jobs[replayed]])
    assert again.num_crashes == 0
    assert_same_play(ended[replayed], again)


def test_a_killed_rollout_actor_leaves_no_process(actor: Any) -> None:
    ended = play(actor, [Job(task=task, member=0) for task in TaskStream(config=ENV, seed=0).take(3)])
    assert all(trajectory.end is not EndReason.ENV_ERROR for trajectory in ended)
    process, envs = family(actor)
    everything = process.children(recursive=True)
    assert len(envs) == 3
    envs.pop().suspend()
    process.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(everything, timeout=30)[1] == []
