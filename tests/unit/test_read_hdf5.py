"""LIBERO's HDF5 demonstrations, official and replayed; what all readers have in common is in test_readers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rlvla.config import ReadConfig
from rlvla.data.dataset import DatasetError
from rlvla.data.demonstrations import Episode
from rlvla.data.read_hdf5 import open_hdf5
from tests.unit.recorded import raw, write_hdf5

BOTH = ReadConfig(cameras=("agentview", "robot0_eye_in_hand"))
TASK = "KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5"


def read(path: Path, options: ReadConfig = BOTH) -> list[Episode]:
    return list(open_hdf5(path, options).episodes)


def describe(file: Path, **attributes: Any) -> Path:
    with h5py.File(file, "r+") as handle:
        for name, value in attributes.items():
            handle["data"].attrs[name] = value if isinstance(value, str) else json.dumps(value)
    return file


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / TASK).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"top_drawer_demo\.hdf5: reading HDF5 needs h5py: make setup"):
        open_hdf5(tmp_path, BOTH)


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


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    episodes = [raw(i, 3) for i in range(11)]
    found = read(write_hdf5(tmp_path / TASK, episodes, official=False))
    assert [e.name.split(", ")[1] for e in found] == [f"demo_{i}" for i in range(11)]
    assert all(np.array_equal(got.actions, want.actions) for got, want in zip(found, episodes, strict=True))


def test_upright_frames_are_mirrored_alone(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / TASK, [raw(0, 6)], official=False)
    describe(file, macros_image_convention="opencv")
    assert np.array_equal(read(file)[0].frames["agentview"], raw(0, 6).agentview[:, ::-1])
    (told,) = read(file, ReadConfig(rotate=True))
    assert np.array_equal(told.frames["agentview"], raw(0, 6).agentview)


def test_files_that_are_cut_off_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a_demo.hdf5", [raw(0, 7), raw(1, 6)], official=True)
    file = write_hdf5(tmp_path / "b_demo.hdf5", [raw(0, 7), raw(1, 6)], official=True)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"b_demo\.hdf5: .*download it again"):
        open_hdf5(tmp_path, BOTH)


def test_files_of_different_rates_are_not_mixed(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a_demo.hdf5", [raw(0, 3)], official=True)
    file = write_hdf5(tmp_path / "b_demo.hdf5", [raw(1, 3)], official=True)
    describe(file, env_args={"env_kwargs": {"control_freq": 10}})
    with pytest.raises(DatasetError, match=r"different control_freq \(\[10\.0, 20\.0\]\)"):
        open_hdf5(tmp_path, BOTH)


@pytest.mark.parametrize(("is_delta", "kind", "other"), [(True, "delta", "absolute"), (False, "absolute", "delta")])
def test_the_controller_says_what_the_actions_are(tmp_path: Path, is_delta: bool, kind: Any, other: Any) -> None:
    settings = {"control_freq": 20, "controller_configs": {"type": "OSC_POSE", "control_delta": is_delta}}
    file = write_hdf5(tmp_path / "a_demo.hdf5", [raw(0, 5)], official=True)
    describe(file, env_args={"env_kwargs": settings})
    assert read(file, replace(BOTH, actions=kind))[0].action_kind == kind
    with pytest.raises(DatasetError, match=rf"a_demo\.hdf5: .*as {other}, but .* {is_delta}: set read\.actions {kind}"):
        open_hdf5(file, replace(BOTH, actions=other))


def test_a_copied_file_is_refused_with_both_names(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / "in/libero_90" / TASK, [raw(0, 7)], official=False)
    assert [e.instruction for e in read(tmp_path)] == ["close the top drawer"]
    (tmp_path / "Z_SCENE1_close_the_top_drawer_demo.hdf5").write_bytes(file.read_bytes())
    with pytest.raises(DatasetError, match=r"KITCHEN_.*, demo_0 repeats .*Z_SCENE1_.*_demo\.hdf5, demo_0"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["demo.hdf5", "low_dim_v141.hdf5", "close_the_drawer.hdf5"])
def test_a_file_that_is_not_called_by_an_instruction_has_none(tmp_path: Path, name: str) -> None:
    write_hdf5(tmp_path / name, [raw(0, 7)], official=False)
    with pytest.raises(DatasetError, match=rf"{name}: no instruction: .*<instruction>_demo\.hdf5"):
        open_hdf5(tmp_path, BOTH)
    official = write_hdf5(tmp_path / "official" / name, [raw(0, 7)], official=True)
    assert read(official)[0].instruction == "pick up object 0"


def test_words_that_tell_a_robot_nothing_are_refused(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / TASK, [replace(raw(0, 7), instruction="KITCHEN_SCENE10_close_it")], official=True)
    with pytest.raises(DatasetError, match=r"_demo\.hdf5: .*instruction.*'KITCHEN_SCENE10_close_it'"):
        open_hdf5(file, BOTH)  # before anything is read
