"""What the data card counts: the columns of a data set without its pictures and the words of its thoughts."""

# pyarrow makes the functions of `compute` as it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlvla.data.dataset import data_files
from rlvla.data.tables import read_table

KEY = "annotation.is_key_frame"
_SCALARS = ("episode_index", "task_index", "annotation.decision_index", "annotation.progress", KEY)
_PROVENANCE = tuple(f"provenance.{name}" for name in ("annotator", "model", "prompt_hash", "attempts", "checks"))
_LISTS = ("annotation.thoughts", "annotation.boxes", "annotation.box_images")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Of a whole data set."""

    decisions: pa.Table
    """A row each: `num_looks`, and the columns that are no lists of words or boxes."""
    thoughts: pa.Table
    """A row each: `num_words`, and whether it `is_key`."""
    looks: pa.Table
    """A row each: `camera` and `box`."""

    @property
    def boxes(self) -> np.ndarray:
        """[looks, 4] int, thousandths of the frame."""
        return np.array(self.looks["box"].to_pylist(), int).reshape(-1, 4)

    def words(self, *, is_key: bool) -> np.ndarray:
        """[thoughts] words in each thought of the key frames, or of all other decisions."""
        return self.thoughts.filter(pc.equal(self.thoughts["is_key"], is_key))["num_words"].to_numpy()

    def count(self, name: str) -> dict[Any, int]:
        """Decisions by the value of a column, or by each value in a column of lists."""
        column = self.decisions[name]
        values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
        return {pair["values"]: pair["counts"] for pair in values.value_counts().to_pylist()}

    def tasks(self) -> Iterator[tuple[int, list[int]]]:
        """Each task's index; the episodes in which it is the instruction somewhere, decisions, key frames, looks."""
        counts = [("episode_index", "count_distinct"), ("task_index", "count"), (KEY, "sum"), ("num_looks", "sum")]
        table = self.decisions.group_by("task_index").aggregate(counts).sort_by("task_index")
        for row in table.to_pylist():
            yield row["task_index"], [row[f"{column}_{how}"] for column, how in counts]

    def kinds(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Key frames, then all other decisions, if any: `num`, `num_with_look` and `words`."""
        is_key_frame, num_looks = (self.decisions[name].to_numpy() for name in (KEY, "num_looks"))
        for name, is_key in (("key frames", True), ("other decisions", False)):
            if len(looks := num_looks[is_key_frame == is_key]):
                words = self.words(is_key=is_key)
                yield name, {"num": len(looks), "num_with_look": np.count_nonzero(looks), "words": words}

    def progress(self) -> tuple[np.ndarray, np.ndarray]:
        """[n] share of the episode that lies behind, up to its last decision that was not dropped; [n] progress."""
        index, episode = (self.decisions[name].to_numpy() for name in ("annotation.decision_index", "episode_index"))
        last = np.zeros(episode.max() + 1, int)
        np.maximum.at(last, episode, index)
        progress = self.decisions["annotation.progress"].to_numpy()
        is_said = (progress >= 0) & (progress <= 1)  # anything may stand here where the check was off, NaN too
        return (index / np.maximum(last[episode], 1))[is_said], progress[is_said]


def read_columns(folder: Path) -> Columns:
    """Read a data set file by file; of the thoughts only their lengths stay in memory."""
    parts = [_read(file) for file in data_files(folder)]
    decisions, thoughts, looks = (pa.concat_tables(tables) for tables in zip(*parts, strict=True))
    return Columns(decisions=decisions, thoughts=thoughts, looks=looks)


def _read(file: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    table = read_table(file, [*_SCALARS, *_PROVENANCE, *_LISTS])
    thoughts, boxes, cameras = (table[name].combine_chunks() for name in _LISTS)
    num_words = pc.count_substring_regex(pc.list_flatten(thoughts), pattern=r"\S+")
    is_key = table[KEY].take(pc.list_parent_indices(thoughts))
    return (
        table.drop_columns(list(_LISTS)).append_column("num_looks", pc.list_value_length(boxes)),
        pa.table({"num_words": num_words, "is_key": is_key}),
        pa.table({"camera": pc.list_flatten(cameras), "box": pc.list_flatten(boxes)}),
    )
