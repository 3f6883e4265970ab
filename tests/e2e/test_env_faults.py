"""A tool that fails in an actor of Ray's, and LIBERO in a process that is killed or stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
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
from rlvla.rollout.env_process import EnvPool
from rlvla.rollout.tasks import TaskStream
from rlvla.run.metrics import rollout_metrics
from rlvla.types import Group, TaskSpec
from tests.look_then_act import ZOOM, LookThenAct, assert_same_play, decider_of, play

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

DEADLINE_S = 20.0
"""Long beside what a healthy env needs for a call, also on a busy machine."""


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
        list(Dispatcher([actor], lambda: None, Watch(900.0, {})).stream(jobs))
    assert str(caught.value) == f"episode.tools.zoom_in ({file}:f) raised KeyError: 'gone' (mine.py, line 2)"


class Saboteur(LookThenAct):
    """It sends a signal to the env's process in the midst of an episode."""

    num_requests = 0
    sent: signal.Signals
    victim: psutil.Process

    async def sample(self, request: SampleRequest) -> SampleOutput:
        self.num_requests -= 1
        if self.num_requests == 0:
            (server,) = (p for p in psutil.Process().children() if "rlvla.rollout.env_server" in p.cmdline())
            (self.victim,) = server.children()
            self.victim.send_signal(self.sent)
        return await super().sample(request)


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
    pool = EnvPool(EnvConfig(id="rlvla/Libero-v0", kwargs=kwargs, deadline_s=DEADLINE_S), num_envs=1)
    task, sampler = TaskSpec(suite="libero_object", task_id=0, init_state_id=0, seed=0), Saboteur(libero_policy)
    decider = decider_of(libero_policy, sampler)
    undisturbed = play(decider, pool.envs[0], task=task)
    assert (undisturbed.num_env_steps, len(undisturbed.turns), undisturbed.num_crashes) == (280, 7, 0)
    for sampler.sent in (signal.SIGKILL, signal.SIGSTOP):
        sampler.num_requests = 6  # the third decision, two requests each
        again = play(decider, pool.envs[0], task=task)
        assert_same_play(again, undisturbed)
        assert again.num_env_steps == undisturbed.num_env_steps
        counted = rollout_metrics([Group(task=task, trajectories=(again,))])
        assert (counted["env_crashes"], counted["env_replays"], counted["env_errors"]) == (1, 1, 0)
        assert psutil.wait_procs([sampler.victim], timeout=30)[1] == []
    pool.close()
