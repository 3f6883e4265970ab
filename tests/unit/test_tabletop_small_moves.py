"""The tabletop whose hand moves little in an env step, and the expert that makes a chain of small moves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

from rlvla.types import Decision
from rlvla_envs.tabletop.env import MAX_MOVE, TabletopEnv
from rlvla_envs.tabletop.expert import ARRIVED, play
from rlvla_envs.tabletop.scene import TASKS

SMALL_MOVE = 0.04


@pytest.fixture(scope="module")
def env() -> Iterator[TabletopEnv]:
    """Whose hand goes 4 cm an env step."""
    env = TabletopEnv(max_move=SMALL_MOVE)
    yield env
    env.close()


def start(env: TabletopEnv, init_state_id: int) -> None:
    """Of "press"."""
    env.reset(options={"task_id": 0, "init_state_id": init_state_id})


def small_chain(env: TabletopEnv, task: str, state: int = 0, seed: int = 0, **options: Any) -> list[Decision]:
    """An episode with a decision an env step, each with a chunk of 60."""
    rng, lengths = np.random.default_rng(seed), {"chunk_length": 60, "stride": 1}
    played = play(env, env.task_names.index(task), state, **lengths, rng=rng, **options)
    assert played is not None
    return played


def test_a_hand_that_moves_less_takes_smaller_steps_and_has_more_of_them(env: TabletopEnv) -> None:
    assert [TabletopEnv().max_env_steps(task) for task in (0, 1)] == [15, 40]
    assert [env.max_env_steps(task) for task in (0, 1)] == [105, 280]
    assert TabletopEnv(max_move=0.3 * MAX_MOVE).max_env_steps(0) == 50
    assert TabletopEnv(max_move=0.3 * MAX_MOVE, max_env_steps=7).max_env_steps(0) == 7
    start(env, 0)
    first = env.scene.commanded
    for number in range(1, 4):
        env.step(np.array([0.28, 0.28, 0.2, 1], np.float32))
        assert np.linalg.norm(env.scene.commanded - first) == pytest.approx(number * SMALL_MOVE)


@pytest.mark.parametrize("task", TASKS)
def test_small_moves_lead_to_the_goal_one_after_the_other(env: TabletopEnv, task: str) -> None:
    """Each goes from where the hand is, at most 4 cm; the gripper only acts where the hand stands still."""
    for state in range(5):
        played = small_chain(env, task, state)
        hands, actions = (
            np.array([v[:3] for v in column])
            for column in zip(*((d.proprio, d.actions[0]) for d in played), strict=True)
        )
        gripper = np.array([d.actions[0, 3] for d in played])
        assert np.linalg.norm(actions - hands, axis=1).max() < SMALL_MOVE + 1e-6
        flips = np.flatnonzero(np.diff(gripper)) + 1
        assert len(flips) == (2 if task == "pick" else 0)
        assert all(np.linalg.norm(actions[flip] - hands[flip]) < ARRIVED for flip in flips)
        for number, decision in enumerate(played):
            assert np.array_equal(
                decision.actions, [played[min(number + k, len(played) - 1)].actions[0] for k in range(60)]
            )


def test_a_chain_of_small_moves_needs_no_second_look(env: TabletopEnv) -> None:
    for state in range(5):
        chain = small_chain(env, "press", state)[0].actions
        start(env, state)
        *_, info = env.step_chunk(chain)
        assert info["is_success"]


def off_line(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """How far a point [3] is from the line through two others, m."""
    return float(np.linalg.norm(np.cross(point - start, end - start)) / np.linalg.norm(end - start))


def test_disturbed_the_expert_says_what_is_right_from_where_it_has_come(env: TabletopEnv) -> None:
    noisy, again, other = (small_chain(env, "press", 3, seed, noise=0.02) for seed in (1, 1, 2))
    assert all(np.array_equal(a.proprio, b.proprio) for a, b in zip(noisy, again, strict=True))
    assert not np.array_equal(noisy[1].proprio, other[1].proprio)
    pad = next(o for o in env.scene.objects() if o.is_target).position
    above = np.array([*pad[:2], 0.08])
    hands = [decision.proprio[:3].astype(np.float64) for decision in noisy]
    assert max(off_line(hand, hands[0], above) for hand in hands[1:-3]) > 0.01, "the hand was disturbed"
    for hand, decision in zip(hands, noisy, strict=True):
        if np.linalg.norm(pad[:2] - hand[:2]) > SMALL_MOVE:
            assert off_line(decision.actions[0, :3], hand, above) < 1e-6


def test_pads_may_be_pressed_off_their_middle(env: TabletopEnv) -> None:
    chain = small_chain(env, "press", 3, offset=(0.03, -0.01))[0].actions
    pad = next(o for o in env.scene.objects() if o.is_target).position
    np.testing.assert_allclose(chain[-1, :2] - pad[:2], (0.03, -0.01), atol=1e-6)


@pytest.mark.parametrize(("option", "value"), [("noise", 0.01), ("offset", (0.0, 0.01))])
def test_what_disturbs_is_for_small_moves(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option} .* is for small moves: set env\.kwargs\.max_move below 0\.28"):
        play(TabletopEnv(), 0, 0, chunk_length=5, stride=5, rng=np.random.default_rng(0), **{option: value})
