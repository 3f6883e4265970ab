"""Task stream, groups and dynamic sampling, with an actor-free `play`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rlvla.config import AdvantageConfig, EnvConfig, GRPOConfig
from rlvla.rollout import Job, TaskStream, collect, make_env, rollout, task_ids
from rlvla.testing import make_trajectory
from rlvla.types import EndReason, Group, Trajectory

ENV = EnvConfig(tasks=("press", "pick"))


def judge(group: Group) -> Group:
    """Success is the reward, and reward minus mean the advantage."""
    from dataclasses import replace

    from rlvla.advantage import with_advantages

    scored = tuple(replace(t, reward=float(t.success)) for t in group.trajectories)
    return with_advantages(replace(group, trajectories=scored), AdvantageConfig())


class Play:
    """Every second group is mixed; the others succeed throughout, so that they carry no signal."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._seen: dict[int, int] = {}

    def __call__(self, jobs: Sequence[Job]) -> list[Trajectory]:
        self.num_calls += 1
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Trajectory:
        number = self._seen.setdefault(job.task.seed, len(self._seen))
        fails = number % 2 == 1 and job.member == 0
        return make_trajectory(task=job.task, end=EndReason.FAILURE if fails else EndReason.SUCCESS)


def config(**values: int) -> GRPOConfig:
    return GRPOConfig(env=ENV, groups_per_step=2, group_size=3, minibatch_trajectories=6, **values)


def test_the_stream_does_not_depend_on_how_it_is_read() -> None:
    at_once, piecewise = TaskStream(config=ENV, seed=5), TaskStream(config=ENV, seed=5)
    tasks = at_once.take(6)
    assert piecewise.take(2) + piecewise.take(1) + piecewise.take(3) == tasks
    assert [task.task_id for task in tasks] == [0, 1, 0, 1, 0, 1]
    assert len({task.seed for task in tasks}) == 6
    assert TaskStream(config=ENV, seed=5, position=4).take(2) == tasks[4:]
    assert TaskStream(config=ENV, seed=6).take(6) != tasks


def test_train_states_only() -> None:
    env = make_env(ENV)
    train = {task: env.init_state_ids(task, "train") for task in (0, 1)}
    assert all(task.init_state_id in train[task.task_id] for task in TaskStream(config=ENV, seed=0).take(50))
    env.close()


def test_an_unknown_task_is_named() -> None:
    env = make_env(ENV)
    with pytest.raises(ValueError, match=r"'fly'.*press, pick"):
        task_ids(env, EnvConfig(tasks=("fly",)))
    env.close()


def test_a_group_holds_the_members_of_one_task() -> None:
    tasks = TaskStream(config=ENV, seed=0).take(3)
    groups = rollout(Play(), tasks, group_size=4)
    assert [group.task for group in groups] == tasks
    assert {len(group.trajectories) for group in groups} == {4}


def test_one_wave_keeps_every_group() -> None:
    play = Play()
    groups, sampled = collect(play, TaskStream(config=ENV, seed=0), judge, config(max_waves=1))
    assert play.num_calls == 1
    assert groups == sampled
    assert [group.has_signal for group in groups] == [False, True]


def test_dynamic_sampling_refills_and_keeps_the_surplus() -> None:
    stream, play = TaskStream(config=ENV, seed=0), Play()
    groups, sampled = collect(play, stream, judge, config(max_waves=3))
    assert play.num_calls == 2
    assert len(sampled) == 4
    assert all(group.has_signal for group in groups)
    assert [group.task for group in groups] == [g.task for g in sampled if g.has_signal]
    stream.surplus = [groups[1]]
    again, _ = collect(play, stream, judge, config(max_waves=3))
    assert again[0] is groups[1]
    assert len(again) == 2


def test_waves_are_bounded() -> None:
    def hopeless(jobs: Sequence[Job]) -> list[Trajectory]:
        return [make_trajectory(task=job.task, end=EndReason.FAILURE) for job in jobs]

    groups, sampled = collect(hopeless, TaskStream(config=ENV, seed=0), judge, config(max_waves=2))
    assert groups == []
    assert len(sampled) == 4
