"""Trajectories travel without their frames, which stay in Ray's object store until somebody looks at them.

They lie once on the node that played the episode, and once on each other node where they are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from rlvla.types import Trajectory


class Frames(Sequence[np.ndarray]):
    """The pictures of one turn, read-only, fetched whenever they are looked at.

    Args:
        kept: reference to the pictures of all turns of a trajectory.
        start: of the first of this turn among them.
        end: exclusive.

    Raises:
        ObjectLostError: the node that had them is lost.
    """

    def __init__(self, kept: Any, start: int, end: int) -> None:
        self._kept, self._start, self._end = kept, start, end

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(ray.get(self._kept)[self._start : self._end])

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]


def without_frames(trajectory: Trajectory) -> tuple[Trajectory, list[np.ndarray]]:
    """A trajectory to send, and its pictures, to be kept apart; `with_frames` makes one of both again.

    On the way each turn has the number of its pictures in their place.
    """
    turns: Any = tuple(replace(turn, images=len(turn.images)) for turn in trajectory.turns)
    return replace(trajectory, turns=turns), [image for turn in trajectory.turns for image in turn.images]


def with_frames(trajectory: Trajectory, kept: Any) -> Trajectory:
    """What `without_frames` made, with a reference to the pictures."""
    turns, end = [], 0
    for turn in trajectory.turns:
        num: Any = turn.images
        turns.append(replace(turn, images=Frames(kept, end, end + num)))
        end += num
    return replace(trajectory, turns=tuple(turns))
