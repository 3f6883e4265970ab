"""Key frames and sub-tasks from the motion of the robot."""

from __future__ import annotations

import numpy as np
import pytest

from rlvla.annotation.key_frames import debounce, find_key_frames, hysteresis
from rlvla.config import KeyFrameConfig
from rlvla.dataset import DatasetError
from tests.takes import moving

OPEN, CLOSE = -1.0, 1.0


def test_the_gripper_makes_the_key_frames_and_they_end_the_sub_tasks() -> None:
    timeline = find_key_frames(moving([[OPEN, OPEN], [OPEN, CLOSE], [CLOSE, CLOSE], [OPEN, OPEN]]), KeyFrameConfig())
    assert timeline.is_key == (False, True, False, True)
    assert timeline.switches == ("", "close", "", "open")
    assert timeline.is_closed == (False, False, True, True)
    assert timeline.segments == (range(0, 2), range(2, 4))
    assert [timeline.segment(i) for i in (0, 1, 2)] == [range(0, 2), range(0, 2), range(2, 4)]
    assert [timeline.next_switch(i) for i in range(4)] == ["close", "close", "open", "open"]


def test_what_comes_behind_the_last_change_is_a_sub_task_of_its_own() -> None:
    timeline = find_key_frames(moving([[OPEN], [CLOSE], [CLOSE], [CLOSE]]), KeyFrameConfig())
    assert timeline.segments == (range(0, 2), range(2, 4))
    assert timeline.next_switch(2) == ""


def test_first_and_last_are_key_frames_by_option_and_end_nothing() -> None:
    timeline = find_key_frames(moving([[OPEN]] * 4), KeyFrameConfig(first=True, last=True))
    assert timeline.is_key == (True, False, False, True)
    assert timeline.segments == (range(0, 4),)


def test_a_closed_sign_of_minus_one_turns_the_gripper_round() -> None:
    timeline = find_key_frames(moving([[1.0], [-1.0]]), KeyFrameConfig(closed_sign=-1))
    assert (timeline.is_closed, timeline.switches) == ((False, False), ("", "close"))


def test_between_the_thresholds_the_gripper_stays_what_it_was() -> None:
    values = np.array([0.2, -0.6, 0.4, 0.6, -0.4, 0.0, -0.5])
    assert hysteresis(values, -0.5, 0.5).tolist() == [False, False, False, True, True, True, False]
    assert hysteresis(np.array([0.0, 0.9, 0.0]), -0.5, 0.5).tolist() == [True, True, True]
    assert hysteresis(np.zeros(3), -0.5, 0.5).tolist() == [False] * 3


def test_a_change_that_is_soon_undone_never_happened() -> None:
    states = np.array([0, 0, 1, 0, 0, 1, 1, 1, 0, 1], bool)
    assert debounce(states, 1).tolist() == states.tolist()
    assert debounce(states, 2).astype(int).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert debounce(np.array([1, 0, 0], bool), 3).tolist() == [True, False, False]  # it may have begun earlier


def test_what_the_robot_reports_tells_of_the_decision_before() -> None:
    widths = np.array([[0.08], [0.08], [0.03], [0.03]], np.float32)
    cfg = KeyFrameConfig(gripper="proprio", closed_sign=-1, open_below=-0.07, closed_above=-0.05)
    timeline = find_key_frames(moving([[0.0]] * 4, proprio=widths), cfg)
    assert timeline.switches == ("", "close", "", "")
    assert timeline.is_closed == (False, False, True, True)


def test_a_stop_is_a_key_frame_by_option() -> None:
    places = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 0, 0], [2, 0, 0], [3, 0, 0], [3, 0, 0]], np.float32)
    cfg = KeyFrameConfig(still_speed=0.5)
    timeline = find_key_frames(moving([[OPEN]] * 7, proprio=places), cfg)
    assert timeline.is_key == (False, False, True, False, False, True, False)
    assert timeline.segments == (range(0, 3), range(3, 6), range(6, 7))
    assert not any(find_key_frames(moving([[OPEN]] * 7, proprio=places), KeyFrameConfig()).is_key)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (KeyFrameConfig(gripper_dim=2), "take 0: key_frames.gripper_dim is 2, actions have 2 dimensions"),
        (KeyFrameConfig(gripper="proprio", gripper_dim=-4), "gripper_dim is -4, proprio have 3"),
        (KeyFrameConfig(still_speed=1.0, still_dims=(0, 5)), "still_dims are .0, 5., proprio has 3"),
    ],
)
def test_a_dimension_that_is_not_there_is_named(cfg: KeyFrameConfig, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        find_key_frames(moving([[OPEN], [CLOSE]]), cfg)


@pytest.mark.parametrize("change", [{"open_below": 0.5}, {"min_gap": 0}, {"still_speed": -1.0}])
def test_an_impossible_option_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"key_frames.{next(iter(change))}"):
        KeyFrameConfig(**change)  # type: ignore[arg-type]
