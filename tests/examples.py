"""Made-up turns, trajectories and demonstrations that are right in form, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlvla import EndReason, Segment, SegmentKind, TaskSpec, Trajectory, Turn
from rlvla.data.dataset import Writer
from rlvla.data.rows import encode
from rlvla.data.types import Demonstration
from rlvla.types import Box

TASK = TaskSpec(suite="tabletop", task_id=0, init_state_id=7, seed=3, instruction="press the red pad")
ZOOM = '{{"name": "zoom_in", "arguments": {{"image": {image}, "bbox": {box}}}}}'


def think(text: str = "the pad is left") -> Segment:
    """A thought of ten tokens; `start` and `end` of a part are its length until `turn` places it."""
    return Segment(kind=SegmentKind.THINK, start=0, end=10, text=text)


def zoom(box: Box = (100, 200, 300, 600), error: str = "", image: int = 0) -> list[Segment]:
    """A tool call of twenty tokens and its result of six."""
    call = Segment(
        kind=SegmentKind.TOOL_CALL,
        start=0,
        end=20,
        text=ZOOM.format(image=image, box=list(box)),
        box=None if error else box,
        error=error,
    )
    return [call, Segment(kind=SegmentKind.TOOL_RESULT, start=0, end=6, text=error)]


def reused(text: str = "the pad is left") -> Segment:
    """The ten tokens of a thought of an earlier decision."""
    return Segment(kind=SegmentKind.PROMPT, start=0, end=10, text=text, is_reused=True)


def act() -> Segment:
    """An action chunk of eight tokens."""
    return Segment(kind=SegmentKind.ACT, start=0, end=8)


def malformed(text: str = "<act><act>", error: str = "<act> inside <act>") -> Segment:
    """Five tokens that break the markup."""
    return Segment(kind=SegmentKind.MALFORMED, start=0, end=5, text=text, error=error)


def turn(*parts: Segment, num_cameras: int = 1, seed: int = 0) -> Turn:
    """A turn of a prompt of four tokens and these parts, with random ids, logprobs, images and actions."""
    rng = np.random.default_rng(seed)
    segments = [Segment(kind=SegmentKind.PROMPT, start=0, end=4, text=TASK.instruction)]
    for part in parts:
        start = segments[-1].end
        segments.append(replace(part, start=start, end=start + part.end))
    length = segments[-1].end
    num_crops = sum(s.kind is SegmentKind.TOOL_RESULT and not s.text for s in segments)
    mask = np.zeros(length, bool)
    for segment in segments:
        mask[segment.start : segment.end] = segment.kind.is_sampled
    has_act = any(s.kind is SegmentKind.ACT for s in segments)
    return Turn(
        token_ids=rng.integers(0, 1000, length).astype(np.int32),
        sampler_logprobs=np.where(mask, -rng.exponential(size=length), 0).astype(np.float32),
        segments=tuple(segments),
        images=tuple(rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(num_cameras + num_crops)),
        actions=rng.normal(size=(5, 4) if has_act else (0, 0)).astype(np.float32),
        policy_version=2,
        latency_s=0.25,
    )


def good_turn(seed: int = 0) -> Turn:
    """Thought, zoom, thought, action."""
    return turn(think(), *zoom(), think("it is red"), act(), seed=seed)


def trajectory(turns: Sequence[Turn] = (), end: EndReason = EndReason.SUCCESS, task: TaskSpec = TASK) -> Trajectory:
    """These turns, five env steps each."""
    return Trajectory(task=task, turns=tuple(turns), end=end, num_env_steps=5 * len(turns))


def demonstration(number: int = 0, *, num_looks: int = 1, side: int = 8, **fields: Any) -> Demonstration:
    """A decision with a picture [side, side], a state and actions [2, 3] that tell its number, but for `fields`."""
    image = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    call = "<tool>" + ZOOM.format(image=0, box=[0, 5, 100, 200]) + "</tool>"
    given: dict[str, Any] = {
        "instruction": TASK.instruction,
        "images": (image,),
        "proprio": np.array([number, 0.5], np.float32),
        "texts": (*(f"<think>look {i}</think>{call}" for i in range(num_looks)), "<think>press it</think>"),
        "crops": (image[::-1],) * num_looks,
        "actions": np.full((2, 3), number, np.float32),
    }
    return Demonstration(**(given | fields))


def write_dataset(path: Path, episodes: Iterable[Sequence[Demonstration]], **source: Any) -> int:
    """Write episodes, each a sequence of decisions, with a `Writer` and its arguments; returns their number."""
    writer = Writer(path, **source)
    for number, episode in enumerate(episodes):
        writer.add(encode(episode, f"{path}, episode {number}"))
    return writer.finish()
