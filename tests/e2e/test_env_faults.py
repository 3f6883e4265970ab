"""A RolloutActor of Ray's: a tool that fails in it, and LIBERO in a process that is killed or stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import ray

from rlvla.cluster.actors import RolloutActor
from rlvla.cluster.cluster import start_ray
from rlvla.cluster.dispatch import Dispatcher, Watch
from rlvla.config import ClusterConfig, EnvConfig, EpisodeConfig, TinyModelConfig
from rlvla.plugins import PluginError
from rlvla.policies.models.tiny_vlm import build_tiny
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.policy import save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.settings import Settings
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.rollout.collect import Job
from rlvla.rollout.tasks import TaskStream
from rlvla.run.metrics import rollout_metrics
from rlvla.types import Group, TaskSpec
from tests.look_then_act import ZOOM, LookThenAct, assert_same_play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 20.0
"""Long beside what healthy envs need for a call, and for a few episodes, also on a busy machine."""
ENV = EnvConfig(tasks=("press",), kwargs={"zoom_source": "render"}, deadline_s=DEADLINE_S)


class Saboteur(LookThenAct):
    """It sends a signal to a process in the midst of an episode."""

    _num_requests = _pid = _signal = 0

    async def strike(self, pid: int, sent: int, num_requests: int) -> None:
        """At the n-th request from now on."""
        self._pid, self._signal, self._num_requests = pid, sent, num_requests

    async def sample(self, request: SampleRequest) -> SampleOutput:
        self._num_requests -= 1
        if self._num_requests == 0:
            os.kill(self._pid, self._signal)
        return await super().sample(request)


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        # Ray's workers run at 15: beside other work on the machine they would meet their deadlines by chance.
        environment.setenv("RAY_worker_niceness", "0")
        start_ray(ClusterConfig())
    yield
    ray.shutdown()


def start(sampler: type, policy: Path, env: EnvConfig, num_envs: int, **episode_: Any) -> tuple[Any, Any]:
    """A sampler and an actor that asks it, with as many envs, each in a process of its own."""
    name = uuid4().hex
    asked = ray.remote(sampler).options(num_cpus=0, max_concurrency=100, name=name).remote(policy)
    episode = EpisodeConfig(max_turn_tokens=1024, **episode_)
    actor = ray.remote(RolloutActor).options(num_cpus=0).remote(name, policy, env, episode, num_envs=num_envs)
    return asked, actor


def family(actor: Any) -> tuple[psutil.Process, set[psutil.Process]]:
    """The actor's process, and the env processes that it has started, without their server."""
    process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))
    servers = [child for child in process.children() if "rlvla.rollout.env_server" in child.cmdline()]
    return process, {child for server in servers for child in server.children()}


def play(actor: Any, jobs: list[Job]) -> list[Any]:
    """All trajectories, in the order in which they ended."""
    return [ray.get(ref)[1] for ref in actor.stream.remote(jobs)]


def test_a_tool_that_fails_reaches_the_driver_by_name(tiny_policy: Path, tmp_path: Path) -> None:
    """And what lies beside its file is imported in the actor, too; the path is one from where the driver stands."""
    (tmp_path / "words.py").write_text("WORD = 'gone'\n")
    (tmp_path / "mine.py").write_text("from words import WORD\ndef f(observation, arguments): raise KeyError(WORD)\n")
    file = os.path.relpath(tmp_path / "mine.py")
    _sampler, actor = start(LookThenAct, tiny_policy, ENV, num_envs=2, tools={"zoom_in": f"{file}:f"})
    jobs = [Job(task=task, member=0) for task in TaskStream(config=ENV, seed=0).take(3)]
    with pytest.raises(PluginError) as caught:
        list(Dispatcher([actor], lambda: None, Watch(900.0, {})).stream(jobs))
    assert str(caught.value) == f"episode.tools.zoom_in ({file}:f) raised KeyError: 'gone' (mine.py, line 2)"
    ray.kill(actor)


@pytest.fixture(scope="module")
def libero_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose chunks have seven dimensions, and last so long that an episode has seven decisions."""
    model, hf_processor = build_tiny(TinyModelConfig(hidden_size=64, num_layers=1, vision_layers=1), [ZOOM], 16, seed=0)
    codec = QuantileCodec(low=(-1.0,) * 7, high=(1.0,) * 7, num_bins=16, chunk_length=40)
    path = tmp_path_factory.mktemp("libero") / "policy"
    save_policy(model, PolicyProcessor.create(hf_processor, Settings(codec=codec)), path)
    return path


@pytest.mark.libero
@pytest.mark.timeout(600)  # three episodes of 280 env steps, and a deadline
def test_a_libero_env_that_dies_or_hangs_in_an_episode_is_played_again_to_the_same_pictures(
    libero_policy: Path, libero_assets: Path
) -> None:
    kwargs = {"suite": "libero_object", "assets": str(libero_assets), "view_size": 64, "reflections": False}
    env = EnvConfig(id="rlvla/Libero-v0", kwargs=kwargs, deadline_s=DEADLINE_S)
    sampler, actor = start(Saboteur, libero_policy, env, num_envs=1)
    job = Job(task=TaskSpec(suite="libero_object", task_id=0, init_state_id=0, seed=0), member=0)
    [undisturbed] = play(actor, [job])
    assert (undisturbed.num_env_steps, len(undisturbed.turns), undisturbed.num_crashes) == (280, 7, 0)
    for sent in (signal.SIGKILL, signal.SIGSTOP):
        (victim,) = family(actor)[1]
        ray.get(sampler.strike.remote(victim.pid, sent, num_requests=6))  # the third decision, two requests each
        [again] = play(actor, [job])
        assert_same_play(again, undisturbed)
        assert again.num_env_steps == undisturbed.num_env_steps
        counted = rollout_metrics([Group(task=job.task, trajectories=(again,))])
        assert (counted["env_crashes"], counted["env_replays"], counted["env_errors"]) == (1, 1, 0)
        assert psutil.wait_procs([victim], timeout=30)[1] == []
