"""Task stream, groups and dynamic sampling, with an actor-free `play`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlvla.config import AdvantageConfig, EnvConfig, EvaluateConfig, GRPOConfig
from rlvla.learner import collate
from rlvla.learner.advantage import with_advantages
from rlvla.rollout.collect import Job, collect, rollout
from rlvla.rollout.env_server import make_env
from rlvla.rollout.tasks import TaskStream, trial_states
from rlvla.run.metrics import rollout_metrics
from rlvla.testing import make_trajectory
from rlvla.types import EndReason, Group, Trajectory

ENV = EnvConfig(tasks=("press", "pick"))


def judge(group: Group) -> Group:
    """Success is the reward, and reward minus mean the advantage."""
    scored = tuple(replace(t, reward=float(t.success)) for t in group.trajectories)
    return with_advantages(replace(group, trajectories=scored), AdvantageConfig())


class Play:
    """Ends each episode as a function of its group's number and its member says."""

    def __init__(self, end: Callable[[int, int], EndReason]) -> None:
        self.end, self.waves = end, list[list[int]]()
        self._seen: dict[int, int] = {}

    def __call__(self, jobs: Sequence[Job]) -> list[Trajectory]:
        self.waves.append([job.member for job in jobs])
        return [make_trajectory(task=job.task, end=self.end(self._number(job), job.member)) for job in jobs]

    def _number(self, job: Job) -> int:
        return self._seen.setdefault(job.task.seed, len(self._seen))


def crashing(*members: int) -> Play:
    """The simulator crashes for these members of each group."""
    return Play(lambda _, member: EndReason.ENV_ERROR if member in members else EndReason.SUCCESS)


def half_mixed() -> Play:
    """Every second group is mixed; the others succeed throughout, so that they carry no signal."""
    return Play(lambda group, member: EndReason.SUCCESS if group % 2 == 0 or member else EndReason.FAILURE)


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
    env = make_env(ENV)
    assert all(task.init_state_id in env.init_state_ids(task.task_id, "train") for task in at_once.take(50))
    env.close()


def test_a_group_is_refilled_by_members_of_its_own() -> None:
    tasks = TaskStream(config=ENV, seed=0).take(2)
    play = crashing(1, 4)
    groups = rollout(play, tasks, group_size=4, max_refills=5)
    assert play.waves == [[0, 1, 2, 3] * 2, [4] * 2, [5] * 2]
    for group, task in zip(groups, tasks, strict=True):
        assert group.task == task
        assert [t.end is EndReason.ENV_ERROR for t in group.trajectories] == [False, True, False, False, True, False]
    counts = rollout_metrics(groups)
    assert (counts["num_trajectories"], counts["num_finished"], counts["env_errors"]) == (12, 8, 4)


def test_refills_are_bounded() -> None:
    """What is missing then is left out: the group goes on with those that ended."""
    play = crashing(*range(1, 99))
    groups, sampled = collect(play, TaskStream(config=ENV, seed=0), judge, config(max_refills=2))
    assert play.waves == [[0, 1, 2] * 2, [3, 4] * 2, [5, 6] * 2]
    assert [t.advantage for t in groups[0].trajectories] == [0.0, *[None] * 6]
    assert (groups, rollout_metrics(sampled)["env_errors"]) == (sampled, 12)
    none = crashing(0)
    groups, _ = collect(none, TaskStream(config=ENV, seed=0), judge, config(max_refills=0))
    assert (len(none.waves), len(groups[0].trajectories)) == (1, 3)


@pytest.mark.parametrize(("max_waves", "num_left"), [(1, 1), (3, 2)])
def test_one_reward_that_is_not_finite_costs_one_group(max_waves: int, num_left: int) -> None:
    """With dynamic sampling another group takes its place."""
    seen: list[Group] = []

    def spoil(group: Group) -> Group:
        seen.append(group)
        first, *others = (replace(t, reward=float(t.success)) for t in group.trajectories)
        bad = replace(first, reward=math.nan) if len(seen) == 2 else first
        return with_advantages(replace(group, trajectories=(bad, *others)), AdvantageConfig())

    mixed = Play(lambda _, member: EndReason.FAILURE if member % 2 else EndReason.SUCCESS)
    groups, sampled = collect(mixed, TaskStream(config=ENV, seed=0), spoil, config(max_waves=max_waves))
    assert len(groups) == num_left
    assert all(group.has_signal for group in groups)
    assert seen[1].task not in [group.task for group in groups]
    assert rollout_metrics(sampled)["groups_not_finite"] == 1
    rows = collate.rows(groups, mask_context_full=True)
    assert all(math.isfinite(row.advantage) for row in rows)


def test_one_wave_keeps_every_group() -> None:
    play = half_mixed()
    groups, sampled = collect(play, TaskStream(config=ENV, seed=0), judge, config(max_waves=1))
    assert len(play.waves) == 1
    assert groups == sampled
    assert [group.has_signal for group in groups] == [False, True]


def test_dynamic_sampling_refills_and_keeps_the_surplus() -> None:
    stream, play = TaskStream(config=ENV, seed=0), half_mixed()
    groups, sampled = collect(play, stream, judge, config(max_waves=3))
    assert len(play.waves) == 2
    assert len(sampled) == 4
    assert all(group.has_signal for group in groups)
    assert [group.task for group in groups] == [g.task for g in sampled if g.has_signal]
    stream.surplus = [groups[1]]
    again, _ = collect(play, stream, judge, config(max_waves=3))
    assert again[0] is groups[1]
    assert len(again) == 2


def test_waves_are_bounded_and_nothing_may_be_left_to_learn_from() -> None:
    hopeless = Play(lambda *_: EndReason.FAILURE)
    for play, num_played in ((hopeless, [3] * 4), (crashing(*range(99)), [6] * 4)):
        stream = TaskStream(config=ENV, seed=0)
        groups, sampled = collect(play, stream, judge, config(max_waves=2, max_refills=1))
        assert groups == []
        assert [len(group.trajectories) for group in sampled] == num_played


def test_ids_are_plain_integers_whatever_the_env_counts_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they go into JSON, and a trial that was read back is the one that was written."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    env = EnvConfig(id="leaky_env:lab/Numbered-v0")
    (task,) = TaskStream(config=env, seed=0).take(1)
    assert json.dumps(task.init_state_id) in ("0", "1", "2")
    official = EvaluateConfig(env=env, split="official", num_trials=2)
    assert json.dumps(trial_states(make_env(env), 0, official)) == "[5, 6]"
    with pytest.raises(
        ValueError, match=r"init_state_ids\(0, 'evaluate'\) of suite numbered: .*float64.*ids are integers"
    ):
        trial_states(make_env(env), 0, EvaluateConfig(env=env, num_trials=2))
