"""Trajectories in a file, exactly: a JSON object a line, see `rlvla.durable.records`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from rlvla.durable.files import appear_whole
from rlvla.durable.records import WRONG, from_json, to_json
from rlvla.types import Trajectory


def save_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Write a `.jsonl` file, which appears whole or not at all, and its folder; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appear_whole(path) as file:
        for trajectory in trajectories:
            file.write((json.dumps(to_json(trajectory)) + "\n").encode())


def load_trajectories(path: Path) -> tuple[Trajectory, ...]:
    """Read what `save_trajectories` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no trajectory; the message names the file and the line.
    """
    trajectories = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                trajectories.append(from_json(Trajectory, json.loads(line)))
            except WRONG as error:
                raise ValueError(f"{path}, line {number}: not a trajectory: {error}") from error
    return tuple(trajectories)
