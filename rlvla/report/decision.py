"""What one decision shows, piece by piece: pictures with boxes, words, actions. `decision.html` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlvla.types import Box

_LOOK_COLOURS = ("#ffd60a", "#4cc9f0", "#ff70a6", "#80ed99")
"""Of the first, second, ... look of a decision: its box on the view and the border of its crop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image [H, W, 3] uint8 with boxes over it, by the index of their look."""

    image: np.ndarray
    caption: str
    boxes: Mapping[int, Box] = field(default_factory=dict)
    colour: str = "var(--line)"
    """Of the border, in CSS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Words of a policy, an annotator or a tool, and whose they are."""

    who: str
    words: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """A chunk of actions."""

    rows: Sequence[Sequence[tuple[float, float]]]
    """Each value with its size as a share of the largest in its column."""


Piece = Picture | Note | Actions


def look_colour(index: int) -> str:
    """Of the look with this index."""
    return _LOOK_COLOURS[index % len(_LOOK_COLOURS)]


def views(cameras: Sequence[np.ndarray], looks: Sequence[tuple[int, Box | None]]) -> list[Picture]:
    """The cameras' pictures, each with the boxes of the looks (camera, box) at it."""
    return [
        Picture(
            image=image,
            caption="policy view" if len(cameras) == 1 else f"camera {camera}",
            boxes={i: box for i, (of, box) in enumerate(looks) if of == camera and box is not None},
        )
        for camera, image in enumerate(cameras)
    ]
