"""A made-up take, and queries about its decisions: grasp and put away, for the tests of what asks and answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rlvla.annotation.take import Query, Take
from rlvla.types import Decision, Timeline

KEYS = (3, 7)
"""The gripper closes at the first and opens at the second."""
TIMELINE = Timeline(
    is_key=tuple(index in KEYS for index in range(10)),
    is_closed=tuple(3 < index <= 7 for index in range(10)),
    switches=tuple({3: "close", 7: "open"}.get(index, "") for index in range(10)),  # type: ignore[arg-type]
    segments=(range(4), range(4, 8), range(8, 10)),
)


def take(*, num_images: int = 1, side: int = 16, instruction: str = "put the bowl on the plate") -> Take:
    """Ten decisions with noise for pictures."""
    rng = np.random.default_rng(0)
    decisions = tuple(
        Decision(
            instruction=instruction,
            images=tuple(rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(num_images)),
            proprio=np.zeros(4, np.float32),
            actions=np.zeros((2, 4), np.float32),
            zoom=lambda image, box: np.zeros((8, 8, 3), np.uint8),
        )
        for _ in range(10)
    )
    return Take(index=0, name="made up", decisions=decisions, stride=2, fps=10.0)


def query(index: int, *, of: Take | None = None, **fields: Any) -> Query:
    """About one decision of `of`, or of `take()`."""
    return replace(Query(take=of or take(), timeline=TIMELINE, index=index, seed=100 + index), **fields)
