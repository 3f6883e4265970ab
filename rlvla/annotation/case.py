"""What checks of one annotation look at, and how they quote it."""

from __future__ import annotations

from typing import NamedTuple

from rlvla.annotation.take import Take
from rlvla.config import CheckConfig
from rlvla.types import Annotation, Box, Decision, Timeline


class Case(NamedTuple):
    """What a check looks at."""

    annotation: Annotation
    take: Take
    timeline: Timeline
    index: int
    cfg: CheckConfig

    @property
    def decision(self) -> Decision:
        """The one that is annotated."""
        return self.take.decisions[self.index]


def quote(text: str) -> str:
    """A value in quotes, cut where it is long, what cannot be printed escaped."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def area(box: Box) -> int:
    """Of a box, in square thousandths of the frame; 0 where it is turned inside out."""
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])
