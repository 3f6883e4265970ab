"""The LeRobot v3 data set: what is written is what is read, and other folders are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlvla import dataset
from rlvla.types import Demonstration


def demonstration(value: int, num_crops: int = 1) -> Demonstration:
    image = np.random.default_rng(value).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Demonstration(
        instruction=f"press pad {value % 2}",
        images=(image,),
        proprio=np.array([value, 0.5], np.float32),
        texts=(*(f"<think>{i}</think><tool>{{}}</tool>" for i in range(num_crops)), "<think>go</think>"),
        crops=tuple(image[::-1] for _ in range(num_crops)),
        actions=np.full((3, 2), value, np.float32),
        carried_thought="before" if value else "",
    )


def test_a_data_set_comes_back_bit_for_bit(tmp_path: Path) -> None:
    episodes = [[demonstration(0, 0), demonstration(1, 2)], [demonstration(2)]]
    assert dataset.write(tmp_path / "demos", episodes, robot="test", fps=2.0) == 2
    read = dataset.read(tmp_path / "demos")
    assert len(read) == 3
    assert read.episode_index.tolist() == [0, 0, 1]
    for expected, got in zip([d for episode in episodes for d in episode], read, strict=True):
        assert (got.instruction, got.texts, got.carried_thought) == (
            expected.instruction,
            expected.texts,
            expected.carried_thought,
        )
        for a, b in zip((*got.images, *got.crops), (*expected.images, *expected.crops), strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(got.actions, expected.actions)
        assert np.array_equal(got.proprio, expected.proprio)


def test_the_layout_is_lerobots(tmp_path: Path) -> None:
    dataset.write(tmp_path / "demos", [[demonstration(i)] for i in range(4)], robot="test", fps=2.0)
    info = json.loads((tmp_path / "demos/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 4, 2)
    assert info["features"]["action"]["shape"] == [3, 2]
    table = pq.read_table(tmp_path / "demos" / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(info["features"]) <= set(table.column_names)
    stats = json.loads((tmp_path / "demos/meta/stats.json").read_text())
    assert stats["action"]["mean"] == [1.5, 1.5]
    assert stats["action"]["count"] == [12]


def test_rows_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS_PER_FILE", 2)
    dataset.write(tmp_path / "demos", [[demonstration(i)] for i in range(5)], robot="test", fps=1.0)
    assert len(list((tmp_path / "demos/data/chunk-000").iterdir())) == 3
    assert [d.actions[0, 0] for d in dataset.read(tmp_path / "demos")] == [0, 1, 2, 3, 4]


def test_nothing_is_overwritten_and_strange_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        dataset.write(tmp_path, [[demonstration(0)]], robot="test", fps=1.0)
    with pytest.raises(dataset.DatasetError, match="no LeRobot v3 data set"):
        dataset.read(tmp_path)
    with pytest.raises(dataset.DatasetError, match="no episode"):
        dataset.write(tmp_path / "empty", [], robot="test", fps=1.0)


def test_a_data_set_without_annotations_says_what_to_run(tmp_path: Path) -> None:
    dataset.write(tmp_path / "demos", [[demonstration(0)]], robot="test", fps=1.0)
    file = tmp_path / "demos/data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["annotation.texts"]), file)
    with pytest.raises(dataset.DatasetError, match=r"annotation\.texts.*annotate\.py"):
        dataset.read(tmp_path / "demos")


def test_each_text_but_the_last_needs_its_crop() -> None:
    with pytest.raises(ValueError, match="2 texts need 1 crops"):
        Demonstration(
            instruction="",
            images=(),
            proprio=np.zeros(1),
            texts=("a", "b"),
            crops=(),
            actions=np.zeros((1, 1)),
        )
