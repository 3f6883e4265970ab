"""A tool that fails in an actor of Ray's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import ray

from rlvla.cluster.actors import RolloutActor
from rlvla.cluster.cluster import start_ray
from rlvla.cluster.dispatch import Dispatcher, Watch
from rlvla.config import ClusterConfig, EnvConfig, EpisodeConfig
from rlvla.plugins import PluginError
from rlvla.rollout.collect import Job, stream
from rlvla.rollout.tasks import TaskStream
from tests.look_then_act import LookThenAct

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def own_ray() -> Iterator[None]:
    start_ray(ClusterConfig())
    yield
    ray.shutdown()


@pytest.mark.usefixtures("own_ray")
def test_a_tool_that_fails_reaches_the_driver_by_name(tiny_policy: Path, tmp_path: Path) -> None:
    """And what lies beside its file is imported in the actor, too; the path is one from where the driver stands."""
    (tmp_path / "words.py").write_text("WORD = 'gone'\n")
    (tmp_path / "mine.py").write_text("from words import WORD\ndef f(observation, arguments): raise KeyError(WORD)\n")
    file, name, env = os.path.relpath(tmp_path / "mine.py"), uuid4().hex, EnvConfig(tasks=("press",))
    _sampler = ray.remote(LookThenAct).options(num_cpus=0, max_concurrency=100, name=name).remote(tiny_policy)
    episode = EpisodeConfig(max_turn_tokens=1024, tools={"zoom_in": f"{file}:f"})
    actor = ray.remote(RolloutActor).options(num_cpus=0).remote(name, tiny_policy, env, episode, num_envs=2)
    jobs = [Job(task=task, member=0) for task in TaskStream(config=env, seed=0).take(3)]
    with pytest.raises(PluginError) as caught:
        dict(stream(Dispatcher([actor], 2, lambda: None, Watch(900.0, {})), jobs))
    assert str(caught.value) == f"episode.tools.zoom_in ({file}:f) raised KeyError: 'gone' (mine.py, line 2)"
