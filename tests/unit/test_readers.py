"""LeRobot's and LIBERO's layouts, written here as their scripts write them: what all readers have in common."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rlvla.config import ReadConfig
from rlvla.data.dataset import DatasetError
from rlvla.data.demonstrations import Episode, Source
from rlvla.data.read_hdf5 import open_hdf5
from rlvla.data.read_lerobot import open_lerobot
from tests.unit.recorded import Raw, raw, write_hdf5, write_v2, write_v3


@dataclass(frozen=True)
class Layout:
    write: Callable[[Path, Sequence[Raw]], Path]
    """Returns what is to be opened."""
    open: Callable[[Path, ReadConfig], Source]
    fps: float = 10.0
    cameras: tuple[str, str] = ("image", "image2")
    """That of the scene, and that at the wrist."""
    other_turn: bool = True
    """The `rotate` that turns what is read without it."""
    episode: str = "episode {}"
    """How the name of an episode ends."""

    def read(self, path: Path, **options: Any) -> list[Episode]:
        return list(self.open(path, ReadConfig(**{"cameras": self.cameras, **options})).episodes)


LAYOUTS = {
    "v2.0": Layout(lambda folder, episodes: write_v2(folder, episodes, version="v2.0"), open_lerobot),
    "v2.1": Layout(write_v2, open_lerobot),
    "v3.0": Layout(lambda folder, episodes: write_v3(folder, episodes, per_file=len(episodes)), open_lerobot),
    "hdf5": Layout(
        lambda folder, episodes: write_hdf5(folder / "pick_up_object_0_demo.hdf5", episodes, official=False),
        open_hdf5,
        fps=20.0,
        cameras=("agentview", "robot0_eye_in_hand"),
        other_turn=False,
        episode="demo_{}",
    ),
}
RAW = [raw(0, 7), raw(2, 4), raw(4, 6)]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


def test_episodes_come_back_bit_for_bit_and_the_right_way_round(layout: Layout, tmp_path: Path) -> None:
    source = layout.open(layout.write(tmp_path / "set", RAW), ReadConfig(cameras=layout.cameras))
    assert (source.robot, source.fps, source.num_episodes) == ("panda", layout.fps, 3)
    for number, (got, want) in enumerate(zip(source.episodes, RAW, strict=True)):
        assert got.name.endswith(layout.episode.format(number))
        assert (got.instruction, got.fps, list(got.frames)) == (want.instruction, layout.fps, list(layout.cameras))
        for seen, true in zip(got.frames.values(), (want.agentview, want.wrist), strict=True):
            assert np.array_equal(seen, true)
        assert np.array_equal(got.state, want.state)
        assert np.array_equal(got.actions, want.actions)


def test_noops_are_dropped_unless_told_otherwise(layout: Layout, tmp_path: Path) -> None:
    still = raw(0, 6)
    still.actions[[1, 5], :-1] = 0
    path = layout.write(tmp_path / "set", [still])
    assert len(layout.read(path, drop_noops=False)[0].actions) == 6
    (episode,) = layout.read(path)
    assert np.array_equal(episode.frames[layout.cameras[0]], still.agentview[[0, 2, 3, 4]])
    assert np.array_equal(episode.actions, still.actions[[0, 2, 3, 4]])


def test_options_choose_turn_align_and_convert(layout: Layout, tmp_path: Path) -> None:
    openvla = replace(RAW[0], actions=RAW[0].actions * [1, 1, 1, 1, 1, 1, -0.5] + [0, 0, 0, 0, 0, 0, 0.5])
    path = layout.write(tmp_path / "set", [openvla])
    with pytest.raises(DatasetError, match=rf"{layout.episode.format(0)}: .*read\.gripper openvla"):
        layout.read(path)
    options = {"gripper": "openvla", "cameras": layout.cameras[1:]}
    (turned,) = layout.read(path, **options, rotate=layout.other_turn, frames_follow_actions=True)
    assert np.array_equal(turned.frames[layout.cameras[1]], RAW[0].wrist[:-1, ::-1, ::-1])
    assert np.array_equal(turned.actions, RAW[0].actions[1:])
    (kept,) = layout.read(path, gripper="unchanged", actions="absolute", cameras=())
    assert list(kept.frames) == [layout.cameras[0]]
    assert kept.action_kind == "absolute"
    assert np.array_equal(kept.actions, openvla.actions)


def test_one_recording_under_two_numbers_is_refused(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path / "set", [RAW[0], RAW[1], RAW[0]])
    with pytest.raises(DatasetError, match=rf"{layout.episode.format(2)} repeats .*{layout.episode.format(0)}, action"):
        layout.read(path)


def test_one_motion_under_other_words_is_another_episode(tmp_path: Path) -> None:
    layout = LAYOUTS["v2.1"]
    path = layout.write(tmp_path / "set", [RAW[0], replace(RAW[0], instruction="close the top drawer")])
    assert len({episode.instruction for episode in layout.read(path)}) == 2


def test_a_camera_that_does_not_exist_is_named(layout: Layout, tmp_path: Path) -> None:
    path = layout.write(tmp_path / "set", RAW)
    with pytest.raises(DatasetError, match=r"no (camera wrist; there are image, image2|obs/wrist_rgb; there are .*)"):
        layout.read(path, cameras=("wrist",))


def test_a_place_without_data_is_named(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no \.hdf5 file here|info\.json: missing, or not JSON"):
        layout.read(tmp_path)


def test_hidden_files_are_left_alone(layout: Layout, tmp_path: Path) -> None:
    """In a folder that is itself hidden, as all that lies in a cache."""
    folder = tmp_path / ".cache/set"
    layout.write(folder, RAW)
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        for hidden in (file.with_name(f"._{file.name}"), file.parent / ".ipynb_checkpoints" / file.name):
            hidden.parent.mkdir(exist_ok=True)
            hidden.write_bytes(b"\0\5\x16\7")
    assert len(layout.read(folder)) == len(RAW)


def test_memory_does_not_grow_with_the_episodes(layout: Layout, tmp_path: Path) -> None:
    length, side = 24, 64
    frames_bytes = 2 * length * side * side * 3

    def peak(num_episodes: int) -> tuple[int, int]:
        episodes = [raw(2 * i, length, side) for i in range(num_episodes)]
        source = layout.open(layout.write(tmp_path / str(num_episodes), episodes), ReadConfig(cameras=layout.cameras))
        tables = 0
        tracemalloc.start()
        for _ in source.episodes:
            tables = max(tables, pa.total_allocated_bytes())
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size, tables

    (few, few_tables), (many, many_tables) = peak(4), peak(32)
    assert many < few + frames_bytes
    assert many_tables < few_tables + frames_bytes
