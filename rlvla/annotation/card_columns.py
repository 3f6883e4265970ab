"""What the data card counts: the columns of a data set without its pictures and the words of its thoughts."""

# pyarrow makes the functions of `compute` as it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlvla.data.dataset import data_files
from rlvla.data.tables import read_table

KEY = "annotation.is_key_frame"
_COLUMNS = (
    *("episode_index", "task_index", "annotation.decision_index", "annotation.progress", KEY, "annotation.thoughts"),
    *("annotation.boxes", "annotation.box_images", "provenance.annotator", "provenance.model"),
    *("provenance.prompt_hash", "provenance.attempts", "provenance.checks"),
)


@dataclass(frozen=True)
class Columns:
    """Decisions of a data set."""

    table: pa.Table
    """A row each; `num_words` of each of its thoughts in place of them, and `num_looks`."""

    def __len__(self) -> int:
        return len(self.table)

    def of_kind(self, *, is_key: bool) -> Columns:
        """The key frames, or all other decisions."""
        return Columns(self.table.filter(pc.equal(self.table[KEY], is_key)))

    def flat(self, name: str) -> np.ndarray:
        """All numbers in a column of numbers or of lists, in order."""
        column = self.table[name]
        while pa.types.is_list(column.type):
            column = pc.list_flatten(column)
        return column.to_numpy()

    @property
    def boxes(self) -> np.ndarray:
        """[looks, 4] int, thousandths of the frame."""
        return self.flat("annotation.boxes").reshape(-1, 4)

    def count(self, name: str) -> dict[Any, int]:
        """Decisions by the value of a column, or by each value in a column of lists."""
        column = self.table[name]
        values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
        return {pair["values"]: pair["counts"] for pair in values.value_counts().to_pylist()}

    def tasks(self) -> Iterator[tuple[int, list[int]]]:
        """Each task's index; the episodes in which it is the instruction somewhere, decisions, key frames, looks."""
        counts = [("episode_index", "count_distinct"), ("task_index", "count"), (KEY, "sum"), ("num_looks", "sum")]
        table = self.table.group_by("task_index").aggregate(counts).sort_by("task_index")
        for row in table.to_pylist():
            yield row["task_index"], [row[f"{column}_{how}"] for column, how in counts]

    def progress(self) -> tuple[np.ndarray, np.ndarray]:
        """[n] share of the episode that lies behind, up to its last decision that was not dropped; [n] progress."""
        index, episode = self.flat("annotation.decision_index"), self.flat("episode_index")
        last = np.zeros(episode.max() + 1, int)
        np.maximum.at(last, episode, index)
        progress = self.flat("annotation.progress")
        is_said = (progress >= 0) & (progress <= 1)  # anything may stand here where the check was off, NaN too
        return (index / np.maximum(last[episode], 1))[is_said], progress[is_said]


def read_columns(folder: Path) -> Columns:
    """Read a data set file by file; of the thoughts only their lengths stay in memory."""
    return Columns(pa.concat_tables(_read(file) for file in data_files(folder)))


def _read(file: Path) -> pa.Table:
    table = read_table(file, _COLUMNS)
    thoughts = table["annotation.thoughts"].combine_chunks()
    num_words = pc.count_substring_regex(pc.list_flatten(thoughts), pattern=r"\S+")
    ends = np.cumsum([0, *pc.list_value_length(thoughts).to_pylist()])
    return (
        table.drop_columns(["annotation.thoughts"])
        .append_column("num_words", pa.ListArray.from_arrays(pa.array(ends, pa.int32()), num_words))
        .append_column("num_looks", pc.list_value_length(table["annotation.boxes"]))
    )
