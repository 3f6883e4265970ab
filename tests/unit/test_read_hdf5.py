"""LIBERO's HDF5 demonstrations, official and replayed by OpenVLA's script, written here as those scripts write them."""

from __future__ import annotations

import importlib.util
import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlvla.config import ReadConfig
from rlvla.data.dataset import DatasetError
from rlvla.data.demonstrations import Episode, decisions
from rlvla.data.read_hdf5 import open_hdf5
from tests.unit.recorded import raw, write_hdf5

needs_h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs h5py: make setup")
BOTH = ReadConfig(cameras=("agentview", "robot0_eye_in_hand"))
TASK = "KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5"


def read(path: Path, options: ReadConfig = BOTH) -> list[Episode]:
    return list(open_hdf5(path, options).episodes)


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / TASK).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"top_drawer_demo\.hdf5: reading HDF5 needs h5py: make setup"):
        open_hdf5(tmp_path, BOTH)


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no \.hdf5 file here"):
        open_hdf5(tmp_path, BOTH)


@needs_h5py
def test_replayed_files_come_back_the_right_way_round(tmp_path: Path) -> None:
    episodes = [raw(0, 7), raw(2, 5)]
    write_hdf5(tmp_path / "libero_90" / TASK, episodes, official=False)
    source = open_hdf5(tmp_path, BOTH)
    assert (source.robot, source.fps, source.num_episodes) == ("panda", 20.0, 2)
    for got, want in zip(source.episodes, episodes, strict=True):
        assert got.instruction == "close the top drawer"
        assert np.array_equal(got.frames["agentview"], want.agentview)
        assert np.array_equal(got.frames["robot0_eye_in_hand"], want.wrist)
        assert np.array_equal(got.state, want.state)
        assert np.array_equal(got.actions, want.actions)


@needs_h5py
def test_official_frames_are_put_before_their_actions(tmp_path: Path) -> None:
    """Frame t of an official file is what action t led to, so that action 0 has none."""
    episodes = [raw(0, 7), raw(2, 5)]
    write_hdf5(tmp_path / "pick_it_up_demo.hdf5", episodes, official=True)
    for got, want in zip(read(tmp_path), episodes, strict=True):
        assert got.instruction == want.instruction
        assert np.array_equal(got.frames["agentview"], want.agentview[1:])
        assert np.array_equal(got.frames["robot0_eye_in_hand"], want.wrist[1:])
        assert np.array_equal(got.state, want.state[1:])
        assert np.array_equal(got.actions, want.actions[1:])


@needs_h5py
def test_values_reach_the_decisions(tmp_path: Path) -> None:
    want = raw(0, 7)
    (episode,) = read(write_hdf5(tmp_path / TASK, [want], official=False), ReadConfig())
    first, second = decisions(episode, chunk_length=4, stride=4)
    assert len(first.images) == 1
    assert np.array_equal(second.images[0], want.agentview[4])
    assert np.array_equal(first.actions, want.actions[:4])
    assert np.array_equal(second.actions, np.concatenate([want.actions[4:], [[0, 0, 0, 0, 0, 0, 1]]]))
    assert np.array_equal(second.proprio, want.state[4])


@needs_h5py
def test_noops_are_dropped_unless_told_otherwise(tmp_path: Path) -> None:
    still = raw(0, 6)
    still.actions[[1, 5], :-1] = 0
    file = write_hdf5(tmp_path / TASK, [still], official=False)
    assert len(read(file, ReadConfig(drop_noops=False))[0].actions) == 6
    (episode,) = read(file)
    assert np.array_equal(episode.frames["agentview"], still.agentview[[0, 2, 3, 4]])
    assert np.array_equal(episode.actions, still.actions[[0, 2, 3, 4]])


@needs_h5py
def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    episodes = [raw(i, 3) for i in range(11)]
    read_ = read(write_hdf5(tmp_path / TASK, episodes, official=False))
    assert [e.name.split(", ")[1] for e in read_] == [f"demo_{i}" for i in range(11)]
    assert all(np.array_equal(got.actions, want.actions) for got, want in zip(read_, episodes, strict=True))


@needs_h5py
def test_options_choose_turn_align_and_convert(tmp_path: Path) -> None:
    import h5py

    want = raw(0, 6)
    openvla = replace(want, actions=want.actions * [1, 1, 1, 1, 1, 1, -0.5] + [0, 0, 0, 0, 0, 0, 0.5])
    file = write_hdf5(tmp_path / TASK, [openvla], official=False)
    with pytest.raises(DatasetError, match=r"_demo\.hdf5, demo_0: .*read\.gripper openvla"):
        read(file)
    options = ReadConfig(gripper="openvla", rotate=False, frames_follow_actions=True)
    (episode,) = read(file, options)
    assert np.array_equal(episode.frames["agentview"], want.agentview[:-1, ::-1, ::-1])
    assert np.array_equal(episode.actions[:, -1], want.actions[1:, -1])
    with h5py.File(file, "r+") as handle:
        handle["data"].attrs["macros_image_convention"] = "opencv"
    (episode,) = read(file, ReadConfig(gripper="openvla"))
    assert np.array_equal(episode.frames["agentview"], want.agentview[:, ::-1])
    (episode,) = read(file, ReadConfig(gripper="openvla", rotate=True))
    assert np.array_equal(episode.frames["agentview"], want.agentview)
    with h5py.File(file, "r+") as handle:
        handle["data"].attrs["macros_image_convention"] = "vulkan"
    with pytest.raises(DatasetError, match=r"demo_0: macros_image_convention is 'vulkan'.*set read\.rotate"):
        read(file, ReadConfig(gripper="openvla"))


@needs_h5py
@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("actions", np.full((6, 7), np.nan), "actions hold NaN or infinity at frame 0"),
        ("actions", np.zeros(6), r"actions has shape \[6\], need 2 axes"),
        ("obs/agentview_rgb", np.zeros((5, 8, 8, 3), np.uint8), "5 of obs/agentview_rgb for 6 actions"),
        ("obs/agentview_rgb", np.zeros((6, 8, 8, 3), np.float32), "camera agentview is float32"),
        ("obs/ee_pos", None, "no obs/ee_pos; there are actions, .*obs/agentview_rgb"),
        ("states", np.zeros((6, 3)), r"states \[6, 3\] whether frames follow .* set read\.frames_follow_actions"),
    ],
)
def test_a_damaged_demonstration_names_file_and_number(
    tmp_path: Path, key: str, values: np.ndarray | None, message: str
) -> None:
    import h5py

    file = write_hdf5(tmp_path / TASK, [raw(0, 7), raw(1, 6)], official=False)
    with h5py.File(file, "r+") as handle:
        del handle["data/demo_1"][key]
        if values is not None:
            handle["data/demo_1"].create_dataset(key, data=values)
    with pytest.raises(DatasetError, match=rf"_demo\.hdf5, demo_1: .*{message}"):
        read(file)


@needs_h5py
def test_files_that_are_cut_off_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    import h5py

    file = write_hdf5(tmp_path / "a_demo.hdf5", [raw(0, 7), raw(1, 6)], official=True)
    with h5py.File(file, "r+") as handle:
        del handle["data/demo_1"]
    with pytest.raises(DatasetError, match=r"a_demo\.hdf5: holds 1 demonstrations, and says 2"):
        open_hdf5(tmp_path, BOTH)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"a_demo\.hdf5: .*download it again"):
        open_hdf5(tmp_path, BOTH)
    with h5py.File(file, "w") as handle:
        handle.create_group("other")
    with pytest.raises(DatasetError, match=r"a_demo\.hdf5: no group 'data'"):
        open_hdf5(tmp_path, BOTH)


@needs_h5py
def test_files_of_different_rates_are_not_mixed(tmp_path: Path) -> None:
    import h5py

    write_hdf5(tmp_path / "a_demo.hdf5", [raw(0, 3)], official=True)
    with h5py.File(write_hdf5(tmp_path / "b_demo.hdf5", [raw(1, 3)], official=True), "r+") as handle:
        handle["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 10}})
    with pytest.raises(DatasetError, match=r"different control_freq \(\[10\.0, 20\.0\]\)"):
        open_hdf5(tmp_path, BOTH)


@needs_h5py
@pytest.mark.parametrize(("is_delta", "kind", "other"), [(True, "delta", "absolute"), (False, "absolute", "delta")])
def test_the_controller_says_what_the_actions_are(tmp_path: Path, is_delta: bool, kind: Any, other: Any) -> None:
    import h5py

    file = write_hdf5(tmp_path / "a_demo.hdf5", [raw(0, 5)], official=True)
    with h5py.File(file, "r+") as handle:
        settings = {"control_freq": 20, "controller_configs": {"type": "OSC_POSE", "control_delta": is_delta}}
        handle["data"].attrs["env_args"] = json.dumps({"env_kwargs": settings})
    assert read(file, replace(BOTH, actions=kind))[0].action_kind == kind
    with pytest.raises(DatasetError, match=rf"a_demo\.hdf5: .*as {other}, but .* {is_delta}: set read\.actions {kind}"):
        open_hdf5(file, replace(BOTH, actions=other))


@needs_h5py
def test_a_copied_file_is_refused_with_both_names(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / TASK, [raw(0, 7)], official=False)
    (tmp_path / "Z_SCENE1_close_the_top_drawer_demo.hdf5").write_bytes(file.read_bytes())
    with pytest.raises(DatasetError, match=r"Z_SCENE1_.*, demo_0 repeats .*KITCHEN_.*_demo\.hdf5, demo_0"):
        read(tmp_path)


@needs_h5py
def test_one_recording_under_other_words_is_read_twice(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / TASK, [raw(0, 7)], official=False)
    (tmp_path / "shut_the_top_drawer_demo.hdf5").write_bytes(file.read_bytes())
    assert [e.instruction for e in read(tmp_path)] == ["close the top drawer", "shut the top drawer"]


@needs_h5py
def test_hidden_files_are_left_alone(tmp_path: Path) -> None:
    write_hdf5(tmp_path / ".cache/set" / TASK, [raw(0, 7)], official=False)
    folder = tmp_path / ".cache/set"  # itself in a hidden folder, as all that lies in a cache
    (folder / f"._{TASK}").write_bytes(b"\0\5\x16\7" + bytes(4000))
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / TASK).write_bytes(b"old")
    assert len(read(folder)) == 1


@needs_h5py
@pytest.mark.parametrize("name", ["demo.hdf5", "low_dim_v141.hdf5", "close_the_drawer.hdf5"])
def test_a_file_that_is_not_called_by_an_instruction_has_none(tmp_path: Path, name: str) -> None:
    write_hdf5(tmp_path / name, [raw(0, 7)], official=False)
    with pytest.raises(DatasetError, match=rf"{name}: no instruction: .*<instruction>_demo\.hdf5"):
        open_hdf5(tmp_path, BOTH)
    official = write_hdf5(tmp_path / "official" / name, [raw(0, 7)], official=True)
    assert read(official)[0].instruction == "pick up object 0"


@needs_h5py
@pytest.mark.parametrize("words", ["", " ", "KITCHEN_SCENE10_close_the_top_drawer"])
def test_words_that_tell_a_robot_nothing_are_refused(tmp_path: Path, words: str) -> None:
    file = write_hdf5(tmp_path / TASK, [replace(raw(0, 7), instruction=words)], official=True)
    with pytest.raises(DatasetError, match=rf"_demo\.hdf5: .*instruction.*'{words.strip()}'"):
        open_hdf5(file, BOTH)  # before anything is read


@needs_h5py
def test_memory_does_not_grow_with_the_episodes(tmp_path: Path) -> None:
    length, side = 24, 64
    frames_bytes = 2 * length * side * side * 3

    def peak(num_episodes: int) -> int:
        episodes = [raw(i, length, side) for i in range(num_episodes)]
        file = write_hdf5(tmp_path / f"{num_episodes}_things_demo.hdf5", episodes, official=False)
        tracemalloc.start()
        for _ in open_hdf5(file, BOTH).episodes:
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(32) < peak(4) + frames_bytes
