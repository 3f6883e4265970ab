"""Annotated data sets with whatever words and numbers a test wants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from rlvla.data import dataset
from rlvla.data.types import Demonstration, Provenance
from rlvla.types import Annotation
from tests.examples import demonstration, write_dataset

GREY = np.full((8, 8, 3), 128, np.uint8)
MADE_BY: dict[str, Any] = {
    "annotator": "openai",
    "model": "a-model",
    "prompt_hash": "abc123",
    "checks": ("markup", "box"),
}


class Row(NamedTuple):
    """A decision and its place."""

    episode: int
    task: int
    decision: Demonstration


def row(
    *thoughts: str,
    boxes: Sequence[tuple[int, int, int, int]] = (),
    is_key: bool = False,
    episode: int = 0,
    decision: int = 0,
    task: int = 0,
    images: tuple[np.ndarray, ...] = (GREY,),
    by: dict[str, Any] = {},  # noqa: B006 (read alone)
    **said: Any,
) -> Row:
    """One decision; `by` are fields of its provenance, `said` further ones of its annotation."""
    annotation = Annotation(**{"thoughts": thoughts, "looks": tuple((0, box) for box in boxes), **said})
    told = {"annotation": annotation, "provenance": Provenance(**MADE_BY | by), "is_key_frame": is_key}
    made = demonstration(num_looks=len(annotation.looks), images=images, decision_index=decision, **told)
    return Row(episode, task, made)


def write_rows(
    folder: Path, rows: Iterable[Row], tasks: Sequence[str] = ("press the pad",), *, rows_per_file: int = 3
) -> Path:
    """Write a data set of these decisions and return its folder; a file ends with an episode."""
    episodes = (
        [replace(one.decision, instruction=tasks[one.task]) for one in episode]
        for _, episode in groupby(rows, key=lambda one: one.episode)
    )
    with patch.object(dataset, "ROWS_PER_FILE", rows_per_file):
        write_dataset(folder, episodes, robot="test", fps=1.0)
    return folder
