"""The LeRobot v3 data set: what is written is what is read, and other folders are refused by name."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlvla.data import dataset
from rlvla.data.types import Demonstration, Provenance
from rlvla.types import Annotation
from tests import examples
from tests.examples import write_dataset


def demonstration(value: int, **changes: Any) -> Demonstration:
    return examples.demonstration(value, instruction=f"press pad {value % 2}", **changes)


def annotated(value: int) -> Demonstration:
    looks = tuple((i, (i, 10, 500, 1000)) for i in range(value % 3))
    annotation = Annotation(
        thoughts=tuple(f"thought {i}" for i in range(len(looks) + 1)),
        looks=looks,
        subtask="press",
        subject="red pad",
        gripper="closed",
        next_gripper="open",
        progress=0.25 if value else None,
    )
    provenance = Provenance(
        annotator="openai",
        model="m",
        prompt_hash="abc",
        seed=2**40 + value,
        attempts=3,
        rejected=("box", "length"),
        checks=("box",) * value,
        prompt_tokens=900,
        completion_tokens=40,
    )
    told: dict[str, Any] = {"is_key_frame": bool(value % 2), "key_step": value or None, "decision_index": value}
    return replace(demonstration(value), annotation=annotation, provenance=provenance, **told)


@pytest.mark.parametrize("make", [demonstration, annotated])
def test_a_data_set_comes_back_bit_for_bit(tmp_path: Path, make: Callable[[int], Demonstration]) -> None:
    episodes = [[make(0), make(1)], [replace(make(2), texts=("<act>",), crops=())]]
    assert write_dataset(tmp_path / "demos", episodes, robot="test", fps=2.0) == 2
    read = dataset.read(tmp_path / "demos")
    assert read.episode_index.tolist() == [0, 0, 1]
    for expected, got in zip(
        [d for episode in episodes for d in episode], (read[i] for i in range(len(read))), strict=True
    ):
        for field in fields(Demonstration):
            mine, other = getattr(expected, field.name), getattr(got, field.name)
            if field.name in ("images", "crops", "actions", "proprio"):
                assert len(mine) == len(other)
                assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
            else:
                assert mine == other, field.name


def test_columns_of_numbers_and_words_are_told_to_lerobot(tmp_path: Path) -> None:
    write_dataset(tmp_path / "demos", [[annotated(0)]], robot="test", fps=2.0)
    told = json.loads((tmp_path / "demos/meta/info.json").read_text())["features"]
    kinds = {name.removeprefix("annotation."): told[name]["dtype"] for name in told if name.startswith("annotation.")}
    words = dict.fromkeys(("subtask", "subject", "gripper", "next_gripper"), "string")
    numbers = {"progress": "float32", "is_key_frame": "bool", "key_step": "int64", "decision_index": "int64"}
    assert kinds == words | numbers
    assert told["provenance.seed"] == {"dtype": "int64", "shape": [1], "names": None}


def test_key_steps_are_kept_where_nobody_has_annotated_and_read_as_one_array(tmp_path: Path) -> None:
    steps = (4, 0, None, 70)
    rows = [demonstration(i, key_step=step) for i, step in enumerate(steps)]
    write_dataset(tmp_path / "demos", [rows[:3], rows[3:]], robot="test", fps=2.0)
    read = dataset.read(tmp_path / "demos")
    assert tuple(one.key_step for one in read) == steps
    assert read[0].annotation is None
    assert (read.key_steps().tolist(), read.key_steps().dtype) == ([4, 0, -1, 70], np.int64)
    assert np.array_equal(read.proprio(), np.array([row.proprio for row in rows]))
    assert [row["annotation.key_step"] for row in read.rows.columns("annotation.key_step")] == list(steps)


def test_sets_of_an_earlier_version_tell_no_key_step(tmp_path: Path) -> None:
    write_dataset(tmp_path / "demos", [[demonstration(0, key_step=1), demonstration(1)]], robot="test", fps=2.0)
    file = tmp_path / "demos/data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["annotation.key_step"]), file)
    read = dataset.read(tmp_path / "demos")
    assert (read[0].key_step, read.key_steps().tolist()) == (None, [-1, -1])


def test_sets_of_an_earlier_version_lack_the_next_gripper_event_and_have_a_carried_thought(tmp_path: Path) -> None:
    write_dataset(tmp_path / "demos", [[annotated(1)]], robot="test", fps=2.0)
    file = tmp_path / "demos/data/chunk-000/file-000.parquet"
    before = pq.read_table(file).drop_columns(["annotation.next_gripper"])
    pq.write_table(before.append_column("annotation.carried_thought", pa.array(["it was red"])), file)
    (read,) = dataset.read(tmp_path / "demos")
    said = annotated(1).annotation
    assert said is not None
    assert read.annotation == replace(said, next_gripper="")


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([[annotated(0)], [demonstration(1)]], r"episode 1: annotation\.thoughts is missing"),
        ([[demonstration(0)], [annotated(1)]], r"episode 1: annotation\.thoughts is list.*but missing"),
        ([[demonstration(0)], [demonstration(1), annotated(2)]], r"episode 1, decision 1: annotation\.thoughts"),
        ([[annotated(0)], [replace(annotated(1), provenance=None)]], r"episode 1: provenance\.annotator is missing"),
        ([[demonstration(0)], [replace(demonstration(1), actions=np.zeros((4, 3)))]], r"action.*\[4, 3\].*\[2, 3\]"),
        ([[demonstration(0)], []], "episode 1: there is no decision"),
    ],
)
def test_episodes_that_do_not_go_together_are_named(
    tmp_path: Path, episodes: list[list[Demonstration]], message: str
) -> None:
    with pytest.raises(dataset.DatasetError, match=message):
        write_dataset(tmp_path / "demos", episodes, robot="test", fps=1.0)
    with pytest.raises(dataset.DatasetError, match="no LeRobot v3 data set"):
        dataset.read(tmp_path / "demos")


def test_the_same_episodes_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_dataset(tmp_path / name, [[annotated(0)], [annotated(1), annotated(2)]], robot="test", fps=2.0)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_layout_is_lerobots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS_PER_FILE", 2)
    write_dataset(tmp_path / "demos", [[demonstration(i)] for i in range(5)], robot="test", fps=2.0)
    info = json.loads((tmp_path / "demos/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (5, 5, 2)
    assert info["features"]["action"]["shape"] == [2, 3]
    files = [tmp_path / "demos" / info["data_path"].format(chunk_index=0, file_index=i) for i in range(3)]
    assert sorted((tmp_path / "demos/data/chunk-000").iterdir()) == files
    assert set(info["features"]) <= set(pq.read_table(files[0]).column_names)
    assert [d.actions[0, 0] for d in dataset.read(tmp_path / "demos")] == [0, 1, 2, 3, 4]


def test_statistics_are_numpys_of_all_numbers(tmp_path: Path) -> None:
    scales = np.array([1, 1e-3, 1e4])
    actions = (np.random.default_rng(0).normal(size=(9, 5, 3)) * scales + 1e3 * scales).astype(np.float32)
    made = [replace(demonstration(i), actions=chunk) for i, chunk in enumerate(actions)]
    write_dataset(tmp_path / "demos", [made[:1], made[1:7], made[7:]], robot="test", fps=1.0)
    stats = json.loads((tmp_path / "demos/meta/stats.json").read_text())
    values = actions.reshape(-1, 3).astype(np.float64)
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    expected = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
    for name, value in (expected | {"q01": q01, "q99": q99, "count": [45]}).items():
        assert stats["action"].pop(name) == pytest.approx(value, rel=1e-12), name
    assert stats["action"] == {}
    assert (stats["observation.state"]["mean"], stats["observation.state"]["count"]) == ([4, 0.5], [9])


def test_writing_holds_few_episodes_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS_PER_FILE", 16)
    side, length = 64, 8

    def peak(num_episodes: int) -> int:
        episodes = ([demonstration(i, side=side) for _ in range(length)] for i in range(num_episodes))
        tracemalloc.start()
        write_dataset(tmp_path / str(num_episodes), episodes, robot="test", fps=5.0)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    few, many = peak(4), peak(40)
    assert many < few + 2 * length * side * side * 3


def test_nothing_is_overwritten_and_strange_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_dataset(tmp_path, [[demonstration(0)]], robot="test", fps=1.0)
    with pytest.raises(dataset.DatasetError, match="no LeRobot v3 data set"):
        dataset.read(tmp_path)
    with pytest.raises(dataset.DatasetError, match="no episode"):
        write_dataset(tmp_path / "empty", [], robot="test", fps=1.0)


def test_each_text_but_the_last_needs_its_crop() -> None:
    with pytest.raises(ValueError, match="2 texts need 1 crops"):
        demonstration(0, texts=("a", "b"), crops=())


def test_sizes_of_a_plain_lerobot_set_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text('{"features": {"action": {"shape": [7]}}}')
    with pytest.raises(dataset.DatasetError, match=r"info\.json: action has shape \[7\], need \[K, A\]: annotate with"):
        dataset.read_sizes(tmp_path)
