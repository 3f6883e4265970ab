"""What the data card counts: the columns of a data set without its pictures and the words of its thoughts."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlvla.data.dataset import data_files
from rlvla.data.tables import read_table

_COLUMNS = (
    *("episode_index", "task_index", "annotation.decision_index", "annotation.progress", "annotation.is_key_frame"),
    *("annotation.thoughts", "annotation.boxes", "annotation.box_images", "provenance.annotator", "provenance.model"),
    *("provenance.prompt_hash", "provenance.attempts", "provenance.checks"),
)


def read_columns(folder: Path) -> pd.DataFrame:
    """A row a decision, columns by the last part of their names.

    Of its thoughts only their lengths stay in memory, `num_words`; and there is `num_looks`.
    """
    return pd.concat([_read(file) for file in data_files(folder)], ignore_index=True)


def _read(file: Path) -> pd.DataFrame:
    table = read_table(file, _COLUMNS).to_pandas().rename(columns=lambda name: name.rpartition(".")[2])
    table["num_words"] = [[len(thought.split()) for thought in thoughts] for thoughts in table.pop("thoughts")]
    table["num_looks"] = [len(cameras) for cameras in table["box_images"]]
    return table


def flat(column: Any) -> np.ndarray:
    """All that is in a column of lists, in order: numbers [n] int, or boxes [n, 4] int, thousandths of the frame."""
    return np.array([*chain.from_iterable(column)], int)


def count(column: Any) -> dict[Any, int]:
    """Decisions by the value of a column, or by each value in a column of lists."""
    return column.explode().value_counts().to_dict()


def by_task(table: pd.DataFrame) -> dict[int, list[int]]:
    """Each task's index -> episodes in which it is the instruction somewhere, decisions, key frames, looks."""
    told = {"episode_index": "nunique", "decision_index": "size", "is_key_frame": "sum", "num_looks": "sum"}
    return {task: list(row) for task, *row in table.groupby("task_index").agg(told).itertuples()}


def progress(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """[n] share of the episode that lies behind, up to its last decision that was not dropped; [n] progress."""
    last = table.groupby("episode_index")["decision_index"].transform("max").clip(lower=1)
    is_said = table["progress"].between(0, 1)  # anything may stand here where the check was off, NaN too
    return np.array((table["decision_index"] / last)[is_said]), np.array(table["progress"][is_said])
