"""The report's episodes: what the policy saw, where it looked closer, what it thought and what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlvla.report.decision import Actions, Note, Picture, Piece, look_colour, views
from rlvla.report.video import Video, animation
from rlvla.types import EndReason, Segment, SegmentKind, Trajectory, Turn

_BADGE = {EndReason.SUCCESS: "good", EndReason.FAILURE: "bad", EndReason.MALFORMED: "bad", EndReason.ENV_ERROR: "bad"}
CameraOf = Callable[[Segment], int]
"""Which camera an accepted call looked at."""


@dataclass(frozen=True, kw_only=True)
class ShownTurn:
    """One decision."""

    facts: Sequence[str]
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class ShownEpisode:
    """One trajectory."""

    title: str
    end: str
    badge: str
    """Class of how it ended: good, bad or empty."""
    facts: Sequence[str]
    error: str
    is_open: bool
    """Whether it is unfolded and has a video; one for each would make the page heavy, and each of them moves."""
    video: Video | None
    turns: Sequence[ShownTurn]


def shown(trajectory: Trajectory, camera_of: CameraOf, *, is_open: bool) -> ShownEpisode:
    """What the page shows of an episode."""
    task = trajectory.task
    turns = [_turn(turn, camera_of) for turn in trajectory.turns]
    pictures = [[piece for piece in pieces if isinstance(piece, Picture)] for pieces in (turn.pieces for turn in turns)]
    num_views = [len(turn.images) - _num_crops(turn) for turn in trajectory.turns]
    return ShownEpisode(
        title=task.instruction or f"{task.suite} task {task.task_id}",
        end=trajectory.end.replace("_", " "),
        badge=_BADGE.get(trajectory.end, ""),
        facts=_facts(trajectory),
        error=trajectory.error,
        is_open=is_open,
        video=animation([seen[:n] for seen, n in zip(pictures, num_views, strict=True)]) if is_open else None,
        turns=turns,
    )


def _facts(trajectory: Trajectory) -> list[str]:
    task = trajectory.task
    facts = [
        f"{task.suite}, initial state {task.init_state_id}",
        f"{_count(len(trajectory.turns), 'turn')}, {_count(trajectory.num_env_steps, 'env step')}",
    ]
    if trajectory.reward is not None:
        terms = ", ".join(f"{name} {value:.3g}" for name, value in trajectory.reward_terms.items())
        facts.append(f"reward {trajectory.reward:.3g} ({terms})")
    if trajectory.advantage is not None:
        facts.append(f"advantage {trajectory.advantage:+.3g}")
    return facts


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _turn(turn: Turn, camera_of: CameraOf) -> ShownTurn:
    num_views = len(turn.images) - _num_crops(turn)
    calls = [call for call in turn.of_kind(SegmentKind.TOOL_CALL) if not call.error]
    crops = iter(enumerate(turn.images[num_views:]))
    pieces = [_piece(segment, turn, crops) for segment in turn.segments]
    latency, version = f"{1000 * turn.latency_s:.0f} ms", f"policy version {turn.policy_version}"
    return ShownTurn(
        facts=[f"{turn.num_sampled_tokens} tokens", latency, version],
        pieces=[
            *views(turn.images[:num_views], [(camera_of(call), call.box) for call in calls]),
            *(piece for piece in pieces if piece is not None),
        ],
    )


def _num_crops(turn: Turn) -> int:
    """How many of the last images tools returned: as many as there are results without text."""
    return sum(not result.text for result in turn.of_kind(SegmentKind.TOOL_RESULT))


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
