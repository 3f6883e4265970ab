"""What the data card counts, over rows as they come: memory holds counters, and the progress of one episode."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.annotation.rows import rows
from rlvla.data.dataset import data_files

COLUMNS = (
    "episode_index",
    "task_index",
    "annotation.thoughts",
    "annotation.boxes",
    "annotation.box_images",
    "annotation.progress",
    "annotation.is_key_frame",
    "annotation.decision_index",
    "provenance.annotator",
    "provenance.model",
    "provenance.prompt_hash",
    "provenance.attempts",
    "provenance.checks",
)
NUM_CELLS = 40
"""Cells along a side of the map of boxes, 25 thousandths of the frame each."""
NUM_SHARES = 20
"""Parts of an episode in which progress is counted."""
NUM_LEVELS = 101
"""Progress is counted in whole per cent, 0 to 100."""
AREA_EDGES = np.logspace(-4, 0, 41)
"""Shares of the frame between which the areas of boxes are counted; a box of 10 thousandths a side has the first."""


@dataclass
class TaskCounts:
    """Of one task."""

    num_episodes: int = 0
    """In which it is the instruction at some decision."""
    num_decisions: int = 0
    num_key_frames: int = 0
    num_looks: int = 0


@dataclass
class KindCounts:
    """Of key frames, or of all other decisions."""

    num_decisions: int = 0
    num_with_look: int = 0
    num_looks: int = 0
    words: Counter[int] = field(default_factory=Counter)
    """Words -> thoughts that long."""


@dataclass
class Counts:
    """Of a whole data set."""

    num_episodes: int = 0
    tasks: dict[int, TaskCounts] = field(default_factory=dict)
    """By task index."""
    key_frames: KindCounts = field(default_factory=KindCounts)
    others: KindCounts = field(default_factory=KindCounts)
    sides: Counter[int] = field(default_factory=Counter)
    """Thousandths of the frame -> sides of boxes that long, two a box."""
    area_sum: float = 0.0
    """Of all boxes, in frames."""
    areas: np.ndarray = field(default_factory=lambda: np.zeros(len(AREA_EDGES) - 1, np.int64))
    """[40] boxes between `AREA_EDGES`."""
    coverage: dict[int, np.ndarray] = field(default_factory=dict)
    """Camera -> [NUM_CELLS, NUM_CELLS] boxes that touch a cell, rows downwards."""
    num_looks: Counter[int] = field(default_factory=Counter)
    """Camera -> looks."""
    progress: np.ndarray = field(default_factory=lambda: np.zeros((NUM_SHARES, NUM_LEVELS), np.int64))
    """[NUM_SHARES, NUM_LEVELS] decisions by the share of their episode that lies behind, and by their progress."""
    annotators: Counter[str] = field(default_factory=Counter)
    """Name -> decisions; so are the next three."""
    models: Counter[str] = field(default_factory=Counter)
    prompt_hashes: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    """Answers until one was accepted -> decisions."""

    @property
    def num_decisions(self) -> int:
        """Of all tasks."""
        return self.key_frames.num_decisions + self.others.num_decisions


def count(folder: Path) -> Counts:
    """Count a data set in one pass over its columns without pictures."""
    counts = Counts()
    episode: int | None = None
    tasks: set[int] = set()
    points: list[tuple[int, float | None]] = []
    for row in itertools.chain.from_iterable(rows(file, COLUMNS) for file in data_files(folder)):
        if row["episode_index"] != episode:
            _add_progress(counts.progress, points)
            episode, tasks, points = row["episode_index"], set(), []
            counts.num_episodes += 1
        task = counts.tasks.setdefault(row["task_index"], TaskCounts())
        task.num_episodes += row["task_index"] not in tasks
        tasks.add(row["task_index"])
        points.append((row["annotation.decision_index"], row["annotation.progress"]))
        _add_row(counts, task, row)
    _add_progress(counts.progress, points)
    return counts


def quantile(histogram: Mapping[int, int], share: float) -> int:
    """The value that this share of what `histogram` counts does not exceed; the histogram is not empty."""
    left = share * sum(histogram.values())
    for value in sorted(histogram):
        left -= histogram[value]
        if left <= 0:
            return value
    return max(histogram)  # what rounding left over


def _add_row(counts: Counts, task: TaskCounts, row: Mapping[str, Any]) -> None:
    kind = counts.key_frames if row["annotation.is_key_frame"] else counts.others
    looks = list(zip(row["annotation.box_images"], row["annotation.boxes"], strict=True))
    task.num_decisions += 1
    task.num_key_frames += row["annotation.is_key_frame"]
    task.num_looks += len(looks)
    kind.num_decisions += 1
    kind.num_looks += len(looks)
    kind.num_with_look += bool(looks)
    kind.words.update(len(thought.split()) for thought in row["annotation.thoughts"])
    for camera, box in looks:
        _add_box(counts, camera, box)
    counts.annotators[row["provenance.annotator"]] += 1
    counts.models[row["provenance.model"]] += 1
    counts.prompt_hashes[row["provenance.prompt_hash"]] += 1
    counts.attempts[row["provenance.attempts"]] += 1
    counts.checks.update(row["provenance.checks"])


def _add_box(counts: Counts, camera: int, box: list[int]) -> None:
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1) / 1e6
    counts.num_looks[camera] += 1
    counts.sides.update((x2 - x1, y2 - y1))
    counts.area_sum += area
    counts.areas[np.clip(np.searchsorted(AREA_EDGES, area, side="right") - 1, 0, len(counts.areas) - 1)] += 1
    cells = counts.coverage.setdefault(camera, np.zeros((NUM_CELLS, NUM_CELLS), np.int64))
    left, top = (v * NUM_CELLS // 1000 for v in (x1, y1))
    right, bottom = (-(-v * NUM_CELLS // 1000) for v in (x2, y2))  # rounded up
    cells[top:bottom, left:right] += 1


def _add_progress(progress: np.ndarray, points: Sequence[tuple[int, float | None]]) -> None:
    """Add one episode, as (decision index, progress); it ends with the last decision that was not dropped."""
    last = max((index for index, _ in points), default=0)
    for index, value in points:
        if value is not None and 0 <= value <= 1:  # anything may stand here where the check was off, NaN too
            share = min(index * NUM_SHARES // max(last, 1), NUM_SHARES - 1)
            progress[share, round(value * (NUM_LEVELS - 1))] += 1
