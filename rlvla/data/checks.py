"""Whether the rows of a data set can be trained on, before anything is built on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.data.rows import DatasetError

NEEDED = {
    *("action", "observation.state", "task_index", "episode_index", "frame_index"),
    *("annotation.texts", "annotation.crops"),
}
"""Columns without which a row is no decision."""


def check_rows(rows: Iterable[Mapping[str, Any]], num_tasks: int, path: Path) -> None:
    """Look at everything but the pixels.

    Args:
        rows: of all files, in their order, with the columns of `NEEDED`.
        num_tasks: how many there are.
        path: of the data set, for errors.

    Raises:
        DatasetError: an episode is there twice or lacks frames, or a row holds what no decision does; the message names
            the episode and the frame.
    """
    seen: set[Any] = set()
    shapes: tuple[Any, ...] | None = None
    for episode, members in groupby(rows, key=lambda row: row["episode_index"]):
        if episode in seen:
            raise DatasetError(f"{path}: episode {episode} appears a second time")
        seen.add(episode)
        for number, row in enumerate(members):
            where = f"{path}, episode {episode}, frame {number}"
            if row["frame_index"] != number:
                raise DatasetError(f"{where}: frame_index is {row['frame_index']}: a frame is missing or there twice")
            for problem in _problems(row, num_tasks):
                raise DatasetError(f"{where}: {problem}")
            shapes = shapes or _shapes(row)
            if (own := _shapes(row)) != shapes:
                raise DatasetError(f"{where}: action and observation.state have shapes {own}, before {shapes}")


def _problems(row: Mapping[str, Any], num_tasks: int) -> Iterator[str]:
    if not isinstance(row["task_index"], int) or not 0 <= row["task_index"] < num_tasks:
        yield f"task_index is {row['task_index']}, meta/tasks.parquet has {num_tasks}"
    for column, num_axes in (("action", 2), ("observation.state", 1)):
        values = _numbers(row[column])
        if values is None or values.ndim != num_axes or not values.size:
            yield f"{column} is not a rectangle of numbers with {num_axes} axes"
        elif not np.isfinite(values).all():
            yield f"{column} holds NaN or infinity"
    texts, crops = row["annotation.texts"], row["annotation.crops"]
    if not texts or None in texts or crops is None or len(crops) != len(texts) - 1:
        yield "annotation.texts has to hold one text more than annotation.crops has pictures"
    if empty := [name for name in row if name.startswith("observation.images.") and not row[name]]:
        yield f"{empty[0]} has no picture"


def _shapes(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return np.shape(row["action"]), np.shape(row["observation.state"])


def _numbers(values: Any) -> np.ndarray | None:
    try:
        return np.array(values, np.float32)
    except (ValueError, TypeError):  # rows of different lengths, or no numbers
        return None
