"""scripts/benchmark/libero_rollout.py: its arithmetic, and that both sides play the same episodes."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("libero")

import libero_rollout
import replay
from measuring import ROOT, Run
from ours import ZOOM, _Random, _random_rollout
from rlvla.config import GRPOConfig, load
from rlvla.rollout.collect import Job
from rlvla.rollout.env_thread import EnvThread
from rlvla.types import EndReason, TaskSpec

CONFIG = ROOT / "recipes/configs/grpo_tiny_libero-object.yaml"


def run(seconds: float, envs: float, sampler: float = 0.0, *, to_horizon: float = 0.25) -> Run:
    facts = {"cpu_s/envs": envs, "cpu_s/sampler": sampler}
    counts = {"trajectories": 8, "env_steps": 800}
    return Run(seconds=seconds, counts=counts, facts=facts if envs < 0 else facts | {"to_horizon": to_horizon})


def test_ratios_by_hand() -> None:
    runs = {"ours": [run(10, 16, 4)], "simulator": [run(8, 16)], "own_env": [run(20, 16, 20)]}
    result = libero_rollout.summarise(runs | {"lockstep": [run(120, 240, 40)]})
    assert result["rollout_libero_vs_lockstep"] == pytest.approx(12)
    assert result["vs_own_env"] * result["own_env_vs_lockstep"] == pytest.approx(12)
    assert result["libero_share_of_limit"] == pytest.approx(0.8)
    assert (result["cpu_vs_lockstep"], result["cpu_share_of_limit"]) == pytest.approx((14, 0.8))
    assert [verdict["met"] for verdict in result["targets"].values()] == [True, True]
    assert libero_rollout.render(result).count("(target") == 2
    with pytest.raises(ValueError, match="did not end alike"):
        libero_rollout.summarise(runs | {"lockstep": [run(120, 240, to_horizon=0.5)]})


def test_wrong_options(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="--num-trajectories 3, --lockstep-rows 2"):
        libero_rollout.main(model=tmp_path, num_trajectories=3, lockstep_rows=2)


def test_a_policy_that_ends_episodes_itself_is_refused_before_the_lockstep() -> None:
    def ended(*ends: EndReason) -> list[Any]:
        return [SimpleNamespace(end=end) for end in ends]

    libero_rollout.require_acted(ended(EndReason.SUCCESS, EndReason.MAX_ENV_STEPS))
    with pytest.raises(SystemExit, match=r"--model: of 3 episodes ended 2 malformed; name a policy"):
        libero_rollout.require_acted(ended(EndReason.MALFORMED, EndReason.SUCCESS, EndReason.MALFORMED))


@pytest.mark.libero
def test_each_trajectory_has_an_initial_state_of_its_own(libero_assets: Path, tmp_path: Path) -> None:
    cfg = libero_rollout.configure(load(GRPOConfig, ["--config", str(CONFIG)]), tmp_path, tmp_path / "r.npz", 3, 0)
    assert (cfg.cluster.envs_per_actor, cfg.cluster.envs_per_process, cfg.env.id) == (3, 1, replay.OURS)
    assert {"view_size", "reflections"}.isdisjoint(cfg.env.kwargs), "what published policies see"
    jobs = libero_rollout.draw_jobs(cfg, 80)
    assert len({(job.task.task_id, job.task.init_state_id) for job in jobs}) == 80
    tasks = [job.task.task_id for job in jobs]
    assert tasks == sorted(tasks)
    assert len(set(tasks)) == len(cfg.env.tasks)
    with pytest.raises(SystemExit, match="81 initial states are needed"):
        libero_rollout.draw_jobs(cfg, 81)


def test_no_run_meets_an_initial_state_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one of the warm-up, and each has its share of tasks and of failures."""
    tasks = [TaskSpec(suite="s", task_id=i // 24, init_state_id=i, seed=0) for i in range(48)]
    runs = libero_rollout.deal([Job(task=task, member=0) for task in tasks], 2, 8)
    assert [len(jobs) for jobs in runs] == [8, 16, 16]
    assert len({job.task.init_state_id for jobs in runs for job in jobs}) == 40
    assert [sum(job.task.task_id for job in jobs) for jobs in runs] == [4, 8, 8]
    played: dict[tuple[int, int], bool] = {}

    def record(_: Any, episodes: list[tuple[int, int]], *, fails: list[bool]) -> None:
        assert episodes == sorted(episodes)  # else each compiles its scene
        played.update(zip(episodes, fails, strict=True))

    monkeypatch.setattr("replay.record", record)
    monkeypatch.setattr("replay.write", lambda *_: None)
    cfg = libero_rollout.configure(load(GRPOConfig, ["--config", str(CONFIG)]), Path(), Path("r.npz"), 3, 0)
    libero_rollout.write_recording(cfg, runs, 0.25)
    failed = [sum(played[job.task.task_id, job.task.init_state_id] for job in jobs) for jobs in runs]
    assert failed == [2, 4, 4]


def test_all_warm_up_alike_and_play_the_same_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, list[Any]] = {}

    class Loop:
        def __init__(self, cfg: GRPOConfig, *_: Any, **__: Any) -> None:
            self.name = cfg.env.id if _ else "ours"

        def __enter__(self) -> Loop:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to end."""

        def rollout(self, jobs: Any) -> Any:
            return [], self.run(jobs)

        def run(self, jobs: Any) -> Run:
            heard.setdefault(self.name, []).append(jobs)
            return run(1.0, 1.0)

    monkeypatch.setattr("ours.Ours", Loop)
    monkeypatch.setattr("lockstep.LockstepRollout", Loop)
    monkeypatch.setattr("ours.measure_simulator", lambda cfg, jobs, zooms, num: Loop(cfg, num).run(jobs))
    cfg = load(GRPOConfig, ["--config", str(CONFIG)])
    measured = libero_rollout.measure_all(cfg, ["warm", "first", "second"], 8, (2,))  # type: ignore[list-item]
    assert heard.pop(replay.OURS) == heard.pop(replay.OFFICIAL) == heard.pop("ours") == ["warm", "first", "second"]
    assert [*heard.values()] == [["warm", "first", "second"]]  # of the simulator
    assert [len(runs) for runs in measured.values()] == [2] * 4


class Counting:
    """An episode of three chunks."""

    def reset(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.chunks, self.zooms = 0, []
        return {}, {}

    def zoom(self, image: int, box: Any) -> None:
        assert (image, box) == (0, ZOOM)
        self.zooms.append(self.chunks)

    def step_chunk(self, actions: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert np.abs(actions).max() <= 1
        self.chunks += 1
        return None, np.zeros(len(actions)), False, self.chunks == 3, {}


def test_the_bare_simulator_looks_as_often_as_the_policy_did() -> None:
    env, space = Counting(), type("Space", (), {"low": -np.ones(7), "high": np.ones(7), "shape": (7,)})
    job = Job(task=TaskSpec(suite="s", task_id=0, init_state_id=0, seed=0), member=0)
    assert _Random(space=space, chunk_length=8, zooms={5: [1, 0, 2]}).play(env, job, 5) == 24
    assert env.zooms == [0, 2, 2]
    assert _Random(space=space, chunk_length=8, zooms={}).play(env, job, 5) == 24
    assert env.zooms == []


def test_the_bare_simulator_keeps_its_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two envs and two tasks that alternate: each env plays one of them, as long as there are episodes of it."""
    resets: dict[int, list[int]] = {0: [], 1: []}

    class Env(Counting):
        def __init__(self, number: int) -> None:
            self.number = number

        def reset(self, *, options: dict[str, int], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            resets[self.number].append(options["task_id"])
            return super().reset()

    class Pool:
        def __init__(self, *_: Any) -> None:
            self.envs = [EnvThread(lambda i=i: Env(i)) for i in range(2)]  # type: ignore[arg-type, return-value]

        def close(self) -> None:
            """Nothing to end."""

    monkeypatch.setattr("ours.EnvPool", Pool)
    specs = [TaskSpec(suite="s", task_id=task, init_state_id=i, seed=0) for i in range(3) for task in (4, 7)]
    jobs = [Job(task=task, member=0) for task in specs]
    space = type("Space", (), {"low": -np.ones(7), "high": np.ones(7), "shape": (7,)})
    random = _Random(space=space, chunk_length=8, zooms={})
    measured = asyncio.run(_random_rollout(load(GRPOConfig, []), jobs, random, 2))
    assert measured.counts == {"env_steps": 6 * 24, "trajectories": 6}
    for first, played in zip((4, 7), resets.values(), strict=True):
        assert played[0] == first
        assert sum(one != other for one, other in pairwise(played)) <= 1, (
            "another scene while there are episodes of this"
        )


def play(env: Any, options: dict[str, int]) -> list[Any]:
    """What an episode of other actions than the recorded ones gives, chunk by chunk."""
    observation, _ = env.reset(options=options)
    seen, is_over = [observation["images"], observation["proprio"]], False
    while not is_over:
        observation, rewards, terminated, truncated, info = env.step_chunk(np.ones((8, 7)))
        seen += [observation["images"], observation["proprio"], rewards, terminated, truncated, info["is_success"]]
        is_over = terminated or truncated
    env.close()
    return seen


def assert_alike(recording: Path, options: dict[str, int], **kwargs: Any) -> list[Any]:
    """Both envs' episodes, which are the same."""
    ours, official = (
        play(env(recording=str(recording), suite="libero_object", **kwargs), options)
        for env in (replay.ReplayedLibero, replay.ReplayedOfficialLibero)
    )
    assert len(ours) == len(official)
    for one, other in zip(ours, official, strict=True):
        assert np.array_equal(one, other)
    return ours


@pytest.mark.libero
def test_the_lockstep_plays_the_same_episode_to_the_horizon(
    libero_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of recorded actions, and of none behind their end; a horizon within a chunk."""
    monkeypatch.setattr("rlvla_envs.libero.env.HORIZONS", {"libero_object": 11})
    recording = {(0, 3): np.random.default_rng(0).uniform(-1, 1, (9, 7)).astype(np.float32)}
    replay.write(tmp_path / "recording.npz", recording)
    assert np.array_equal(replay.read(tmp_path / "recording.npz")[0, 3], recording[0, 3])
    seen = assert_alike(tmp_path / "recording.npz", {"task_id": 0, "init_state_id": 3}, settle_steps=2)
    assert [len(seen[4]), len(seen[10])] == [8, 3]
    assert seen[-3:] == [False, True, False]
