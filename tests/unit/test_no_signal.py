"""A run that has nothing to learn from stops, and says what it saw."""

from __future__ import annotations

import runpy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rlvla_reward
from rlvla.config import AdvantageConfig, GRPOConfig
from rlvla.durable.trajectories import load_trajectories
from rlvla.learner.advantage import with_advantages
from rlvla.run.no_signal import NoSignalCount
from rlvla.types import EndReason, Group, SegmentKind, Trajectory
from tests.learning import make_run
from tests.trajectories import TASK, make_trajectory, make_turn

WORDS = "press the the the"
REWARD = rlvla_reward.build(GRPOConfig().reward)
BABBLE = make_turn(
    [(SegmentKind.PROMPT, 4), (SegmentKind.MALFORMED, 3)],
    actions=np.zeros((0, 0), np.float32),
    texts={SegmentKind.MALFORMED: WORDS},
)


def group(*ends: EndReason, acts: bool = True) -> Group:
    """Scored; one that does not act is malformed in its only turn."""
    turns = [make_turn()] if acts else [BABBLE]
    played = tuple(make_trajectory(turns, end=end, task=TASK) for end in ends)
    return with_advantages(REWARD.score(Group(task=TASK, trajectories=played)), AdvantageConfig(), REWARD.weights)


LOST, WON = group(EndReason.FAILURE, EndReason.FAILURE), group(EndReason.SUCCESS, EndReason.SUCCESS)
MIXED = group(EndReason.FAILURE, EndReason.SUCCESS)
MUTE = group(EndReason.MALFORMED, EndReason.MALFORMED, acts=False)


def stops_at(allowed: int, *steps: Group | list[Group], first: int = 0) -> int | None:
    """The first of the steps after which the run should stop; None: it goes on."""
    count = NoSignalCount(allowed)
    for step, groups in enumerate(steps, first):
        if count.is_too_much(step, groups if isinstance(groups, list) else [groups]):
            return step
    return None


def test_steps_without_signal_in_a_row_stop_a_run() -> None:
    assert stops_at(3, LOST, LOST, MIXED, LOST, LOST, LOST, LOST) == 5
    assert stops_at(3, *[[LOST, MIXED]] * 9) is None
    assert stops_at(1, MIXED, LOST) == 1
    assert stops_at(3, LOST, LOST, WON, LOST) == 3  # a step that nobody could fail says nothing
    assert stops_at(3, *[WON] * 9) is None
    assert stops_at(3, *[[WON, LOST]] * 9) == 2
    assert stops_at(3, MIXED, *[MUTE] * 9) == 3


def test_a_first_step_without_an_executable_action_stops_it_at_once() -> None:
    assert stops_at(10, MUTE) == 0
    assert stops_at(10, [MUTE, LOST]) is None  # somebody acted
    assert stops_at(10, MUTE, first=1) is None  # of a run that goes on
    assert stops_at(10, group(EndReason.ENV_ERROR, EndReason.ENV_ERROR, acts=False)) == 0


def test_what_differs_is_learned_from_even_where_nobody_acted() -> None:
    """A reward of one's own may teach the markup from nothing."""
    trajectories = tuple(replace(t, advantage=a) for t, a in zip(MUTE.trajectories, (1.0, -1.0), strict=True))
    assert stops_at(10, replace(MUTE, trajectories=trajectories)) is None


def test_0_never_stops() -> None:
    assert stops_at(0, *[MUTE] * 30) is None


@pytest.fixture
def cfg(checkpoint: Path, tmp_path: Path) -> GRPOConfig:
    return GRPOConfig(model=checkpoint, output=tmp_path / "run", max_futile_steps=2)


def stopped(cfg: GRPOConfig, *steps: Group) -> str:
    """What a run stops with at the last of some steps; it keeps that step, and a state if it has learned anything."""
    run = make_run(cfg)
    for step, sampled in enumerate(steps[:-1]):
        run.require_signal(step, [sampled], [sampled])
    assert list(cfg.output.glob("bad_step_*")) == []
    last = len(steps) - 1
    with pytest.raises(RuntimeError) as caught:
        run.require_signal(last, [], [steps[-1]])
    file = cfg.output / f"bad_step_{last}.jsonl"
    assert [t.end for t in load_trajectories(file)] == [t.end for t in steps[-1].trajectories]
    assert str(file) in str(caught.value)
    states = [folder.name for folder in cfg.output.glob("state/*")]
    assert states == ([f"step-{last:06d}"] if last else [])
    return str(caught.value)


def test_the_message_says_what_was_seen(cfg: GRPOConfig) -> None:
    mixed = replace(LOST, trajectories=(*LOST.trajectories, *MUTE.trajectories[:1]))
    message = stopped(cfg, MIXED, LOST, mixed)
    for part in (
        "no group had signal in 2 steps in a row, the last of them step 2 (max_futile_steps is 2)",
        "3 trajectories ended as: failure 2, malformed 1. ",
        "Mean reward terms: success 0, format 0.667.",
        f"The first malformed text (): '{WORDS}'.",
        "max_futile_steps: 0 goes on",
    ):
        assert part in message


def test_the_message_of_a_first_step(cfg: GRPOConfig) -> None:
    message = stopped(cfg, MUTE)
    assert (
        "ended as: malformed 2, and none held an executable action. Mean reward terms: success 0, format 0." in message
    )


def test_a_simulator_that_never_works_is_told(tmp_path: Path, cfg: GRPOConfig) -> None:
    def crash(trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, turns=(), error="RuntimeError: no GL context")

    crashed = group(EndReason.ENV_ERROR, EndReason.ENV_ERROR)
    message = stopped(cfg, replace(crashed, trajectories=tuple(map(crash, crashed.trajectories))))
    assert "ended as: env_error 2" in message
    assert (
        "Mean reward terms: none was scored. The first error of the simulator: RuntimeError: no GL context." in message
    )


def test_the_recipe_stops_before_it_learns(cfg: GRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    main = runpy.run_path(str(Path(__file__).parents[2] / "recipes/grpo.py"))["main"]
    fakes = {
        "check_grpo": lambda cfg: None,
        "Cluster": lambda cfg, begin: nullcontext(SimpleNamespace()),  # it cannot learn
        "Collector": lambda *_: SimpleNamespace(collect=lambda step: ([], [MUTE])),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(main.__globals__, name, fake)
    with pytest.raises(RuntimeError, match=r"the last of them step 0 .* 2 trajectories ended as: malformed 2"):
        main(cfg)
    assert not (cfg.output / "metrics.jsonl").exists()
