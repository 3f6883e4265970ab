"""Episodes as they were recorded, their no-ops, and the decisions that they become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvla.annotation.run import unannotated
from rlvla.annotation.take import Take
from rlvla.config import ReadConfig
from rlvla.data import dataset
from rlvla.data.dataset import DatasetError
from rlvla.data.demonstrations import (
    Episode,
    decisions,
    drop_noops,
    moves,
    policy_view,
    prepared,
    robosuite_gripper,
    zoom,
)
from rlvla.policies.thinker.demonstrating import to_turn
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import SegmentKind
from tests.e2e.run import recipe
from tests.unit.recorded import raw, write_v2


def episode(length: int = 5, action_dims: int = 4, **fields: Any) -> Episode:
    """Frame t is grey t; action t moves by t + 1 hundredths; the gripper closes at half time."""
    actions = np.full((length, action_dims), 0.01, np.float32) * np.arange(1, length + 1, dtype=np.float32)[:, None]
    actions[:, -1] = np.where(np.arange(length) < length // 2, -1, 1)
    default = {
        "name": "file.hdf5, demo_3",
        "instruction": "press the pad",
        "frames": {"agentview": np.arange(length, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 8, 3), np.uint8)},
        "state": np.arange(length, dtype=np.float32)[:, None] + np.array([0, 0.5], np.float32),
        "actions": actions,
        "fps": 20.0,
    }
    return Episode(**{**default, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instruction": ""}, "no instruction in words, but ''"),
        ({"instruction": " \n"}, "no instruction in words"),
        ({"instruction": "12"}, "no instruction in words, but '12'"),
        ({"instruction": "pick_up_the_block"}, "'pick_up_the_block' looks like a file's name"),
        ({"instruction": "demos/block"}, "looks like a file's name"),
        ({"instruction": "pick up the block_demo.hdf5"}, "looks like a file's name"),
        ({"actions": np.zeros((5,), np.float32)}, r"actions have shape \[5\]"),
        ({"actions": np.full((5, 4), np.nan, np.float32)}, "actions hold NaN or infinity at frame 0"),
        ({"state": np.full((5, 2), np.inf, np.float32)}, "state hold NaN"),
        ({"state": np.zeros((4, 2), np.float32)}, "4 states for 5 actions"),
        ({"frames": {}}, "no camera"),
        ({"frames": {"wrist": np.zeros((4, 8, 8, 3), np.uint8)}}, "camera wrist has 4 frames for 5 actions"),
        ({"frames": {"wrist": np.zeros((5, 8, 8, 3))}}, "camera wrist is float64"),
        ({"frames": {"wrist": np.zeros((5, 8, 8), np.uint8)}}, r"\[5, 8, 8\], need uint8"),
        ({"fps": 0.0}, "fps is 0"),
    ],
)
def test_a_malformed_episode_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=rf"^file\.hdf5, demo_3: .*{message}"):
        episode(**fields)


@pytest.mark.parametrize("instruction", ["wave", "put it on the left.", "pick up moka_pot 2", "把杯子放到盘子上"])
def test_what_a_robot_may_be_told_is_an_instruction(instruction: str) -> None:
    assert episode(instruction=instruction).instruction == instruction


def openvla_keeps(actions: np.ndarray) -> list[bool]:
    """Its rule, word for word: compare the gripper with that of the last action that was kept."""
    kept: list[np.ndarray] = []
    mask = []
    for action in actions:
        is_still = np.linalg.norm(action[:-1].astype(np.float64)) < 1e-4
        is_noop = is_still and (not kept or action[-1] == kept[-1][-1])
        mask.append(not is_noop)
        if not is_noop:
            kept.append(action)
    return mask


STEP = st.tuples(st.sampled_from([0.0, 0.99e-4, 1.01e-4, 0.5, -0.5]), st.sampled_from([-1.0, 1.0]))


@given(st.lists(STEP, min_size=1, max_size=12))
def test_noops_are_those_of_openvla(steps: list[tuple[float, float]]) -> None:
    actions = np.array([[motion, 0, gripper] for motion, gripper in steps], np.float32)
    assert moves(actions).tolist() == openvla_keeps(actions)


def test_a_gripper_that_closes_at_rest_is_no_noop() -> None:
    actions = np.array([[0, -1], [0, 1], [0.5, 1], [0, 1], [0, -1], [0, -1]], np.float32)
    assert moves(actions).tolist() == [False, False, True, False, True, False]


def test_noops_leave_with_their_frames() -> None:
    recorded = episode()
    actions = recorded.actions.copy()
    actions[[1, 4], :-1] = 0
    kept = drop_noops(replace(recorded, actions=actions))
    assert kept.frames["agentview"][:, 0, 0, 0].tolist() == [0, 2, 3]
    assert kept.state[:, 0].tolist() == [0, 2, 3]
    assert np.array_equal(kept.actions, actions[[0, 2, 3]])
    with pytest.raises(DatasetError, match="demo_3: every action is a no-op"):
        drop_noops(replace(recorded, actions=np.zeros((5, 4), np.float32)))


def test_grippers_become_robosuites() -> None:
    shares = np.array([[0.3, 1], [0.4, 0], [0.5, 0.25]], np.float32)
    assert robosuite_gripper(shares, "openvla", "e")[:, 1].tolist() == [-1, 1, 0.5]
    assert robosuite_gripper(shares, "droid", "e")[:, 1].tolist() == [1, -1, -0.5]
    assert np.array_equal(robosuite_gripper(shares, "openvla", "e")[:, 0], shares[:, 0])
    robosuite = np.array([[0.3, 1], [0.4, -1], [0.5, 0.2]], np.float32)
    assert robosuite_gripper(robosuite, "robosuite", "e") is robosuite
    assert robosuite_gripper(robosuite, None, "e") is robosuite
    for other in (shares, robosuite * 40):
        assert robosuite_gripper(other, "unchanged", "e") is other


@pytest.mark.parametrize(
    ("gripper", "convention", "message"),
    [
        ([0, 1, 1], None, "e: the gripper goes from 0 to 1, .*set read.gripper openvla if 1 opens, droid if 1 closes"),
        ([0, 1, 1], "robosuite", "e: .*set read.gripper openvla"),
        ([1, 0.66, 0.33], None, "e: the gripper goes from 0.33 to 1, .*set read.gripper openvla"),
        ([0.5, 0.5, 0.5], None, "e: the gripper goes from 0.5 to 0.5, .*set read.gripper openvla"),
        ([1, 1, 1], None, "e: the gripper goes from 1 to 1, .*set read.gripper robosuite or openvla if 1 opens"),
        ([-1, 2, 1], "robosuite", "e: the gripper goes from -1 to 2"),
        ([0, 255, 1], None, "e: the gripper goes from 0 to 255.*read.gripper unchanged"),
        ([-1, 1, 1], "openvla", "e: the gripper goes from -1 to 1.*try read.gripper robosuite"),
        ([-1, 1, 1], "droid", "e: the gripper goes from -1 to 1.*try read.gripper robosuite"),
    ],
)
def test_a_gripper_of_another_convention_is_refused(gripper: list[float], convention: Any, message: str) -> None:
    actions = np.array([[0.5, value] for value in gripper], np.float32)
    with pytest.raises(DatasetError, match=message):
        robosuite_gripper(actions, convention, "e")


def test_a_set_that_has_shown_its_gripper_may_keep_it_closed() -> None:
    closed = episode(name="closed", actions=np.full((5, 4), [0.1, 0.2, 0.3, 1], np.float32))
    assert [e.actions[0, -1] for e in prepared([episode(), closed], ReadConfig())] == [-1, 1]
    with pytest.raises(DatasetError, match=r"closed: the gripper goes from 1 to 1, .*set read\.gripper robosuite"):
        list(prepared([closed, episode()], ReadConfig()))
    assert len(list(prepared([closed, episode()], ReadConfig(gripper="robosuite")))) == 2


def test_the_same_motion_under_other_words_or_pictures_is_another_episode() -> None:
    lit = {"agentview": 255 - episode().frames["agentview"]}
    wrist = {"agentview": episode().frames["agentview"], "wrist": lit["agentview"]}
    others = [episode(instruction="press it"), episode(frames=lit), episode(frames=wrist)]
    assert len(list(prepared([episode(), *others], ReadConfig()))) == 4


def joints(length: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Absolute actions [T, 7], rad, that wander about a pose, and the joints [T, 6] that follow two steps later."""
    rng = np.random.default_rng(seed)
    places = np.array([0.4, -1.0, 1.2, 0.2, -0.6, 0.1]) + np.cumsum(
        rng.normal(scale=0.02, size=(length + 2, 6)), axis=0
    )
    gripper = np.where(np.arange(length) < length // 2, -1, 1)
    return np.column_stack([places[2:], gripper]).astype(np.float32), places[:length].astype(np.float32)


def deltas(length: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """LIBERO-like: commands [T, 7] in -1..1 that change slowly, and the pose [T, 6] that they move, 0.05 a unit."""
    rng = np.random.default_rng(seed)
    speeds = np.sin(np.arange(length)[:, None] / 15 + rng.uniform(0, 6, 6)) * rng.uniform(0.2, 0.9, 6)
    pose = np.array([0.2, 0.1, 1.0, 3.1, 0.0, 0.1]) + 0.05 * np.cumsum(speeds, axis=0) - 0.05 * speeds
    gripper = np.where(np.arange(length) < length // 2, -1, 1)
    return np.column_stack([speeds, gripper]).astype(np.float32), pose.astype(np.float32)


def kind_of(recorded: tuple[np.ndarray, np.ndarray], **options: Any) -> list[Episode]:
    actions, state = recorded
    frames = {"agentview": np.zeros((len(actions), 8, 8, 3), np.uint8)}
    made = episode(actions=actions, state=state, frames=frames, action_kind=ReadConfig(**options).action_kind)
    return list(prepared([made], ReadConfig(**options)))


@pytest.mark.parametrize("told", [{}, {"actions": "delta"}])
def test_joints_that_the_state_follows_are_no_deltas(told: dict[str, Any]) -> None:
    message = r"demo_3: the actions are read as delta, but they are absolute: in 6 of the 6 dimensions .* within 0\.00"
    with pytest.raises(DatasetError, match=message + r".*Set read\.actions to what they are"):
        kind_of(joints(), **told)
    assert kind_of(joints(), actions="absolute")


def test_joints_beside_another_state_are_asked_about_and_may_be_told() -> None:
    actions, _ = joints()
    recorded = actions, np.random.default_rng(1).normal(size=(len(actions), 8)).astype(np.float32)
    with pytest.raises(DatasetError, match=r"may be absolute: their mean is 1\.\d+ long, \d+ times their median step"):
        kind_of(recorded)
    for kind in ("delta", "absolute"):
        assert kind_of(recorded, actions=kind)


def test_deltas_are_deltas_whoever_says_otherwise() -> None:
    assert kind_of(deltas())
    assert kind_of(deltas(), actions="delta")
    with pytest.raises(DatasetError, match=r"read as absolute, but they are deltas: in 6 of the 6 dimensions"):
        kind_of(deltas(), actions="absolute")


@given(st.integers(0, 10_000), st.integers(2, 80), st.sampled_from([joints, deltas]))
def test_no_episode_contradicts_what_it_is(seed: int, length: int, recorded: Any) -> None:
    assert kind_of(recorded(length, seed), actions="absolute" if recorded is joints else "delta")


def test_a_robot_that_is_told_to_move_on_and_stops_is_not_asked_about() -> None:
    """A steady push: long deltas, no steps between them; it ends at rest."""
    actions = np.full((60, 7), [0.5, 0, 0, 0, 0, 0, -1], np.float32)
    actions[:, 0] += np.random.default_rng(0).normal(scale=0.005, size=60)
    actions[-3:, :-1] *= 0.01
    assert kind_of((actions, np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)))


def test_absolute_actions_hold_still_where_they_are_and_none_is_a_noop() -> None:
    actions, state = joints()
    actions[10:14] = actions[10]
    actions[20, :-1] = 0  # upright, and no rest
    (recorded,) = kind_of((actions, state), actions="absolute")
    assert np.array_equal(recorded.actions, actions)
    last = decisions(recorded, chunk_length=5, stride=1)[-1]
    assert np.array_equal(last.actions, np.repeat(actions[-1:], 5, axis=0))


def test_chunks_tile_the_episode_and_hold_still_behind_its_end() -> None:
    recorded = episode(5)
    first, second, third = decisions(recorded, chunk_length=2, stride=2)
    assert [d.images[0][0, 0, 0] for d in (first, second, third)] == [0, 2, 4]
    assert [d.proprio.tolist() for d in (first, second, third)] == [[0, 0.5], [2, 2.5], [4, 4.5]]
    assert np.array_equal(first.actions, recorded.actions[:2])
    assert np.array_equal(third.actions, np.array([recorded.actions[4], [0, 0, 0, 1]]))
    assert {d.instruction for d in (first, second, third)} == {"press the pad"}


def test_a_stride_of_one_decides_at_every_frame_and_zooms_into_it() -> None:
    recorded = episode(5)
    every = decisions(recorded, chunk_length=3, stride=1)
    assert [d.images[0][0, 0, 0] for d in every] == [d.zoom(0, (0, 0, 500, 500))[0, 0, 0] for d in every] == [*range(5)]
    for t, decision in enumerate(every[:3]):
        assert np.array_equal(decision.actions, recorded.actions[t : t + 3])
    assert every[4].actions[1:].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]


def test_a_view_is_resized_and_cropped() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(policy_view(frame, False, 0), frame)
    big = np.repeat(np.repeat(np.array([[10, 200], [60, 120]], np.uint8), 50, 0), 50, 1)[..., None].repeat(3, -1)
    small = policy_view(big, False, 10)[..., 0].astype(int)
    assert small[[2, 2, 7, 7], [2, 7, 2, 7]].tolist() == pytest.approx([10, 200, 60, 120], abs=8)
    ramp = np.arange(101, dtype=np.uint8)[:, None, None] * np.ones((1, 101, 3), np.uint8) * 2
    # Rows 0 to 100 become rows 50 - 47.434 to 50 + 47.434, whose greys are twice that.
    assert policy_view(ramp, True, 0)[[0, 50, 100], 50, 0].tolist() == [5, 100, 195]


def test_a_zoom_is_the_part_of_the_view_at_the_recorded_resolution() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    quarter = zoom(frame, (500, 0, 1000, 500), False, 20)
    assert np.array_equal(quarter, frame[:20, 20:])
    widened = zoom(frame, (510, 10, 990, 490), False, 20)
    assert np.array_equal(widened, quarter)
    whole = zoom(frame, (0, 0, 1000, 1000), True, 0)
    assert np.array_equal(whole, policy_view(frame, True, 0))
    assert zoom(frame, (0, 0, 500, 250), False, 0).shape == (40, 40, 3)


def test_a_decision_without_text_is_an_action_and_nothing_else(tiny_policy: Path) -> None:
    processor = PolicyProcessor.load(tiny_policy)
    take = Take(index=0, name="e", decisions=tuple(decisions(episode(5), chunk_length=2, stride=2)), stride=2, fps=5.0)
    demonstration = unannotated(take, (None, 3, None))[1]
    assert demonstration.key_step == 3
    turn = to_turn(processor, demonstration)
    assert [segment.kind for segment in turn.segments] == [SegmentKind.PROMPT, SegmentKind.ACT]
    marks = processor.vocabulary.mark_ids
    sampled = turn.token_ids[turn.loss_mask].tolist()
    bins = processor.codec.encode(demonstration.actions)
    expected = [marks["<act>"], *(processor.vocabulary.action_ids[b] for b in bins), marks["</act>"]]
    assert sampled == expected
    assert not turn.is_malformed


def test_the_recipe_turns_a_source_into_our_data_set(tmp_path: Path) -> None:
    episodes = [raw(0, 9), raw(1, 6), raw(2, 7), raw(3, 7)]
    episodes[1].actions[2:4, :-1] = 0  # one no-op, and one at which the gripper closes
    source = write_v2(tmp_path / "recorded", episodes)
    config = {"source": str(source), "output": str(tmp_path / "demos"), "chunk_length": 4, "num_episodes": 3}
    recipe("annotate", {**config, "read": {"cameras": ["image2", "image"], "center_crop": False}}, tmp_path)
    read = dataset.read(tmp_path / "demos")
    assert read.episode_index.tolist() == [0, 0, 0, 1, 1, 2, 2]
    kept = np.delete(episodes[1].actions, 2, axis=0)
    assert np.array_equal(read[3].actions, kept[:4])
    assert np.array_equal(read[4].actions, np.concatenate([kept[4:], [[0, 0, 0, 0, 0, 0, 1]] * 3]))
    assert np.array_equal(read[4].proprio, episodes[1].state[5])
    wrist, agentview = read[1].images
    assert np.array_equal(wrist, episodes[0].wrist[4])
    assert np.array_equal(agentview, episodes[0].agentview[4])
    assert [read[i].instruction[-1] for i in range(7)] == list("0001100")
    # The gripper closes in the middle, at steps 4, 2 (a no-op before it is dropped) and 3.
    assert read.key_steps().tolist() == [4, 0, -1, 2, -1, 3, -1]
    info = json.loads((tmp_path / "demos/meta/info.json").read_text())
    assert (info["robot_type"], info["fps"], info["total_episodes"]) == ("panda", 2.5, 3)
    assert info["action_kind"] == "delta"
