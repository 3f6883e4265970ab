"""The report's episodes: what the policy saw, where it looked closer, what it thought and what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlvla.report.decision import Actions, Note, Picture, Piece, look_colour, views
from rlvla.report.video import Video, animation
from rlvla.types import Segment, SegmentKind, Trajectory, Turn

CameraOf = Callable[[Segment], int]
"""Which camera an accepted call looked at."""


@dataclass(frozen=True, kw_only=True)
class ShownEpisode:
    """One trajectory."""

    trajectory: Trajectory
    pieces: Sequence[Sequence[Piece]]
    """What each of its turns shows."""
    is_open: bool
    """Whether it is unfolded and has a video; one for each would make the page heavy, and each of them moves."""
    video: Video | None


def shown(trajectory: Trajectory, camera_of: CameraOf, *, is_open: bool) -> ShownEpisode:
    """What the page shows of an episode."""
    seen = [_views(turn, camera_of) for turn in trajectory.turns]
    return ShownEpisode(
        trajectory=trajectory,
        pieces=[[*pictures, *_course(turn)] for pictures, turn in zip(seen, trajectory.turns, strict=True)],
        is_open=is_open,
        video=animation(seen) if is_open else None,
    )


def _views(turn: Turn, camera_of: CameraOf) -> list[Picture]:
    """The cameras, with the boxes of the calls that were accepted."""
    calls = [call for call in turn.of_kind(SegmentKind.TOOL_CALL) if not call.error]
    return views(turn.images[: _num_views(turn)], [(camera_of(call), call.box) for call in calls])


def _num_views(turn: Turn) -> int:
    """How many images are views; the others tools returned, one for each result without text."""
    return len(turn.images) - sum(not result.text for result in turn.of_kind(SegmentKind.TOOL_RESULT))


def _course(turn: Turn) -> list[Piece]:
    """What the turn came to, segment by segment."""
    crops = iter(enumerate(turn.images[_num_views(turn) :]))
    pieces = [_piece(segment, turn, crops) for segment in turn.segments]
    return [piece for piece in pieces if piece is not None]


def _piece(segment: Segment, turn: Turn, crops: Iterator[tuple[int, np.ndarray]]) -> Piece | None:
    kind = segment.kind
    if kind is SegmentKind.THINK or segment.is_reused:
        return Note(who="thought, reused" if segment.is_reused else "thought", words=segment.text)
    if kind is SegmentKind.TOOL_CALL and segment.error:
        return Note(who="tool call, refused", words=f"{segment.text}\n{segment.error}", is_bad=True)
    if kind is SegmentKind.TOOL_RESULT and not segment.text:
        index, crop = next(crops)
        return Picture(image=crop, caption=f"zoom {index + 1}", colour=look_colour(index))
    if kind is SegmentKind.ACT and turn.actions.size:
        sizes = np.abs(turn.actions)
        shares = sizes / np.maximum(sizes.max(axis=0), np.finfo(np.float32).tiny)
        return Actions(rows=np.stack([turn.actions, shares], axis=-1).tolist())
    if kind is SegmentKind.ACT:
        return Note(who="action chunk", words="not executed", is_bad=True)
    if kind is SegmentKind.MALFORMED:
        return Note(who=f"malformed: {segment.error}", words=segment.text, is_bad=True)
    return None
