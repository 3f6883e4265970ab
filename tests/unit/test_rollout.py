"""Task stream, groups, dynamic sampling and staleness, with episodes that nobody plays."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlvla.config import AdvantageConfig, EnvConfig, EvaluateConfig, GRPOConfig, LossConfig
from rlvla.learner import collate
from rlvla.learner.advantage import with_advantages
from rlvla.rollout.collect import Collector, Job
from rlvla.rollout.env_server import make_env
from rlvla.rollout.tasks import TaskStream, trial_states
from rlvla.run.metrics import rollout_metrics, staleness
from rlvla.types import EndReason, Group, Trajectory
from tests.trajectories import make_trajectory

ENV = EnvConfig(tasks=("press", "pick"))


def judge(group: Group) -> Group:
    """Success is the reward, and reward minus mean the advantage."""
    scored = tuple(replace(t, reward=float(t.success)) for t in group.trajectories)
    return with_advantages(replace(group, trajectories=scored), AdvantageConfig())


class Play:
    """`Episodes` that end as a function of their group's number and their member says.

    They do so in an order that is drawn, or in theirs.
    """

    def __init__(self, end: Callable[[int, int], EndReason], seed: int | None = 0) -> None:
        self.end, self.puts, self.settled = end, list[list[int]](), list[Job]()
        self.version = 0
        self.lost: list[Job] = []
        self._seen: dict[int, int] = {}
        self._playing: list[tuple[Job, int]] = []
        self._random = None if seed is None else random.Random(seed)

    def put(self, jobs: Sequence[Job]) -> None:
        self.puts.append([job.member for job in jobs])
        for job in jobs:
            self._seen.setdefault(job.task.seed, len(self._seen))
        self._playing += [(job, self.version) for job in jobs]

    def get(self) -> tuple[Job, Trajectory | None]:
        if self.lost:
            job = self.lost.pop()
            self._playing.append((job, self.version))
            return job, None
        job, version = self._playing.pop(self._random.randrange(len(self._playing)) if self._random else 0)
        played = make_trajectory(task=job.task, end=self.end(self._seen[job.task.seed], job.member))
        return job, replace(played, turns=tuple(replace(turn, policy_version=version) for turn in played.turns))

    def settle(self, jobs: Sequence[Job]) -> None:
        self.settled += jobs

    @property
    def num_playing(self) -> int:
        return len(self._playing)


def crashing(*members: int) -> Play:
    """The simulator crashes for these members of each group."""
    return Play(lambda _, member: EndReason.ENV_ERROR if member in members else EndReason.SUCCESS)


END = (EndReason.SUCCESS, EndReason.FAILURE)


def half_mixed(seed: int = 0) -> Play:
    """Every second group is mixed; the others succeed throughout, so that they carry no signal."""
    return Play(lambda group, member: END[0] if group % 2 == 0 or member else END[1], seed)


def config(**values: int) -> GRPOConfig:
    return GRPOConfig(env=ENV, groups_per_step=2, group_size=3, minibatch_trajectories=6, **values)


def collect(
    play: Play, tasks: TaskStream, judge: Callable[[Group], Group], config: GRPOConfig
) -> tuple[list[Group], list[Group]]:
    """One step."""
    return Collector(play, tasks, judge, config).collect(0)


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
    stream, play = TaskStream(config=ENV, seed=0), crashing(1, 4)
    settings = replace(config(max_refills=5), group_size=4)
    groups, _ = collect(play, stream, judge, settings)
    assert play.puts == [[0, 1, 2, 3] * 2, [4], *([[4], [5]] if play.puts[2] == [4] else [[5], [4]]), [5]]
    for group, task in zip(groups, TaskStream(config=ENV, seed=0).take(2), strict=True):
        assert group.task == task
        assert [t.end is EndReason.ENV_ERROR for t in group.trajectories] == [False, True, False, False, True, False]
    counts = rollout_metrics(groups)
    assert (counts["num_trajectories"], counts["num_finished"], counts["env_errors"]) == (12, 8, 4)


def test_refills_are_bounded() -> None:
    """What is missing then is left out: the group goes on with those that ended."""
    play = crashing(*range(1, 99))
    groups, sampled = collect(play, TaskStream(config=ENV, seed=0), judge, config(max_refills=2))
    assert sorted(play.puts) == sorted([[0, 1, 2] * 2, [3, 4], [3, 4], [5, 6], [5, 6]])
    assert [t.advantage for t in groups[0].trajectories] == [0.0, *[None] * 6]
    assert (groups, rollout_metrics(sampled)["env_errors"]) == (sampled, 12)
    none = crashing(0)
    groups, _ = collect(none, TaskStream(config=ENV, seed=0), judge, config(max_refills=0))
    assert (len(none.puts), len(groups[0].trajectories)) == (1, 3)


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
    assert len(play.puts) == 1
    assert groups == sampled
    assert [group.has_signal for group in groups] == [False, True]


def test_dynamic_sampling_refills_and_keeps_the_surplus() -> None:
    stream, play = TaskStream(config=ENV, seed=0), half_mixed()
    groups, sampled = collect(play, stream, judge, config(max_waves=3))
    assert len(play.puts) == 2
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


def test_the_next_wave_begins_when_it_is_certain_that_it_is_needed() -> None:
    """The first group has no signal: the second one of the wave may still be played then, whatever comes of it."""
    for end in (EndReason.FAILURE, EndReason.SUCCESS):
        tasks, left = TaskStream(config=ENV, seed=0), list[int]()
        play = Play(lambda group, member, end=end: end if group == 1 and not member else EndReason.SUCCESS, None)
        put = play.put

        def noted(jobs: Sequence[Job], play: Play = play, put: Any = put, left: list[int] = left) -> None:
            left.append(play.num_playing)
            put(jobs)

        play.put = noted  # type: ignore[method-assign]
        _, sampled = collect(play, tasks, judge, config(max_waves=2))
        assert len(left) == 2
        assert left[1] > 0
        assert [group.task for group in sampled] == TaskStream(config=ENV, seed=0).take(4)


def test_what_is_lost_with_a_node_is_waited_for_again() -> None:
    play = Play(lambda *_: EndReason.SUCCESS)
    tasks = TaskStream(config=ENV, seed=0)
    job, *_ = [Job(task=task, member=0) for task in TaskStream(config=ENV, seed=0).take(2)]
    get, num = play.get, 0

    def getting() -> tuple[Job, Trajectory | None]:
        nonlocal num
        num += 1
        played = get()
        if played[0] == job and num < 10:
            play.lost.append(job)
            num = 10
        return played

    play.get = getting  # type: ignore[method-assign]
    groups, _ = collect(play, tasks, judge, config())
    assert num > 10
    assert [len(group.trajectories) for group in groups] == [3, 3]
    assert play.num_playing == 0
    assert set(play.settled) == {Job(task=g.task, member=m) for g in groups for m in range(3)}


@pytest.mark.parametrize("max_waves", [1, 3])
@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_rollouts_run_ahead_by_so_many_steps_and_no_further(max_waves: int, staleness: int, seed: int) -> None:
    """Each group is learned from at most `max_staleness` steps after it was begun, in the tasks' order."""
    cfg = replace(config(max_waves=max_waves, max_staleness=staleness), num_steps=8)
    tasks, play = TaskStream(config=ENV, seed=0), half_mixed(seed)
    collector, steps = Collector(play, tasks, judge, cfg), []
    for step in range(cfg.num_steps):
        play.version = step
        groups, sampled = collector.collect(step)
        assert len(groups) == 2
        steps.append(sampled)
        ages = [step - turn.policy_version for group in sampled for t in group.trajectories for turn in t.turns]
        assert 0 <= min(ages) <= max(ages) <= staleness
        if max_waves == 1 and step >= staleness:
            is_last = step + staleness >= cfg.num_steps
            assert max(ages) == staleness
            assert is_last or tasks.position - tasks.num_settled == staleness * 2
    taken = [group.task for sampled in steps for group in sampled]
    assert taken == TaskStream(config=ENV, seed=0).take(len(taken))
    assert tasks.num_settled == len(taken)
    assert tasks.surplus == []
    if max_waves == 1:
        assert (play.num_playing, tasks.position) == (0, 16)  # nothing was begun that no step would take


@pytest.mark.parametrize("max_waves", [1, 3])
def test_without_staleness_nothing_is_left_in_play(max_waves: int) -> None:
    tasks, play = TaskStream(config=ENV, seed=0), half_mixed()
    collector = Collector(play, tasks, judge, config(max_waves=max_waves))
    for step in range(3):
        collector.collect(step)
        assert (play.num_playing, tasks.num_settled) == (0, tasks.position)


def test_groups_without_signal_do_not_let_the_others_grow_old() -> None:
    """A step that has looked at as many groups as it may begins no more for itself, and the last one none at all."""
    cfg = GRPOConfig(env=ENV, groups_per_step=4, group_size=2, max_waves=2, max_staleness=1, num_steps=4)
    tasks, play = TaskStream(config=ENV, seed=0), Play(lambda group, member: END[group >= 8 and member % 2], None)
    collector = Collector(play, tasks, judge, cfg)
    learned = []
    for step in range(cfg.num_steps):
        play.version = step
        groups, _ = collector.collect(step)
        learned.append(len(groups))
        assert len(collector._open) <= 4
        assert all(step - turn.policy_version <= 1 for g in groups for t in g.trajectories for turn in t.turns)
    assert learned == [0, 4, 4, 4]
    assert play.num_playing == len(collector._open) == 0


def test_how_old_the_tokens_are_that_a_step_learns_from() -> None:
    tasks, play = TaskStream(config=ENV, seed=0), Play(lambda _, member: END[member % 2])
    collector = Collector(play, tasks, judge, config(max_staleness=1))
    collector.collect(0)
    play.version = 1
    groups, _ = collector.collect(1)
    tokens = sum(turn.num_sampled_tokens for group in groups for t in group.trajectories for turn in t.turns)
    assert staleness(groups, 1) == {"staleness": 1.0, "staleness_max": 1.0, "tokens_behind/1": float(tokens)}
    assert staleness(groups, 0)["staleness"] == 0.0
    assert staleness([], 0) == {}


def test_staleness_takes_the_importance_weight() -> None:
    with pytest.raises(ValueError, match=r"max_staleness is 1 and loss\.importance_cap 0: .* set it"):
        GRPOConfig(max_staleness=1, loss=LossConfig(importance_cap=0.0))


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
