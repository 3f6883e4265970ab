"""The report's episodes: what the policy saw, where it looked closer, what it thought and what it did."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from report_page import tag, text
from report_video import Views, animation
from rlvla.markup import ToolCall, parse_call
from rlvla.types import Box, EndReason, Segment, SegmentKind, Trajectory, Turn

BOX_COLOURS = ("#ffd60a", "#4cc9f0", "#ff70a6", "#80ed99")
"""Of the first, second, ... zoom of a turn: its box on the view and the border of its crop."""
_BADGE = {EndReason.SUCCESS: "good", EndReason.FAILURE: "bad", EndReason.MALFORMED: "bad", EndReason.ENV_ERROR: "bad"}


def section(runs: Sequence[tuple[str, Sequence[Trajectory]]]) -> str:
    """Every saved trajectory of (run, trajectories); the first of each run is unfolded and has a video."""
    return "".join(
        tag("h3", text(run)) + "".join(_episode(t, is_open=i == 0) for i, t in enumerate(trajectories))
        for run, trajectories in runs
    )


def _episode(trajectory: Trajectory, *, is_open: bool) -> str:
    task = trajectory.task
    badge = tag("span", text(trajectory.end.replace("_", " ")), class_=f"badge {_BADGE.get(trajectory.end, '')}")
    title = tag("b", text(task.instruction or f"{task.suite} task {task.task_id}"))
    head = tag("summary", f'{title} {badge} <span class="dim">{_facts(trajectory)}</span>')
    error = _note("the simulator raised", trajectory.error, is_bad=True) if trajectory.error else ""
    # A video an episode would make the page heavy, and each of them moves.
    video = animation([_views(turn) for turn in trajectory.turns], task.instruction) if is_open else ""
    turns = "".join(_turn(number, turn) for number, turn in enumerate(trajectory.turns, start=1))
    opening = "<details class='episode' open>" if is_open else "<details class='episode'>"
    return f"{opening}{head}{error}{video}{turns}</details>\n"


def _facts(trajectory: Trajectory) -> str:
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
    return " · ".join(text(fact) for fact in facts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _turn(number: int, turn: Turn) -> str:
    crops = _crops(turn)
    num_cameras = len(turn.images) - len(crops)
    boxes = _looks(turn)
    views = "".join(
        _picture(
            turn.images[camera],
            "policy view" if num_cameras == 1 else f"camera {camera}",
            boxes=[(i, box) for i, (of, box) in enumerate(boxes) if box is not None and of == camera],
        )
        for camera in range(num_cameras)
    )
    pending = iter(enumerate(crops))
    steps = "".join(_segment(segment, turn, pending) for segment in turn.segments)
    meta = f"turn {number} · {turn.num_sampled_tokens} tokens · {1000 * turn.latency_s:.0f} ms"
    head = tag("div", f"{meta} · policy version {turn.policy_version}", class_="dim")
    return tag("div", head + tag("div", views + steps, class_="flow"), class_="turn")


def _views(turn: Turn) -> Views:
    """The cameras, each with the boxes that were looked at in it."""
    cameras = turn.images[: len(turn.images) - len(_crops(turn))]
    boxes = [(camera, _colour(i), box) for i, (camera, box) in enumerate(_looks(turn)) if box is not None]
    return [(view, [(colour, box) for of, colour, box in boxes if of == i]) for i, view in enumerate(cameras)]


def _looks(turn: Turn) -> list[tuple[int, Box | None]]:
    """Camera and box of each accepted call."""
    return [_place(segment) for segment in turn.of_kind(SegmentKind.TOOL_CALL) if not segment.error]


def _crops(turn: Turn) -> tuple[np.ndarray, ...]:
    """The images that tools returned: the last ones, as many as results without text."""
    num_crops = sum(not result.text for result in turn.of_kind(SegmentKind.TOOL_RESULT))
    return turn.images[len(turn.images) - num_crops :]


def _place(call: Segment) -> tuple[int, Box | None]:
    """Which camera an accepted call looked at, and where; the camera is only in the call's own words."""
    parsed = parse_call(call.text)
    camera = parsed.arguments.get("image") if isinstance(parsed, ToolCall) else None
    return camera if isinstance(camera, int) else 0, call.box


def _segment(segment: Segment, turn: Turn, crops: Iterator[tuple[int, np.ndarray]]) -> str:
    kind = segment.kind
    if kind is SegmentKind.THINK:
        return _note("thought", segment.text)
    if kind is SegmentKind.TOOL_CALL:
        return _note("tool call, refused", f"{segment.text}\n{segment.error}", is_bad=True) if segment.error else ""
    if kind is SegmentKind.TOOL_RESULT and not segment.text:
        index, crop = next(crops)
        return _picture(crop, f"zoom {index + 1}", colour=_colour(index))
    if kind is SegmentKind.ACT:
        return _actions(turn.actions)
    if kind is SegmentKind.MALFORMED:
        return _note(f"malformed: {segment.error}", segment.text, is_bad=True)
    return ""


def _note(who: str, words: str, *, is_bad: bool = False) -> str:
    return tag("div", tag("span", text(who), class_="who") + text(words), class_="note bad" if is_bad else "note")


def _colour(index: int) -> str:
    return BOX_COLOURS[index % len(BOX_COLOURS)]


def _picture(
    image: np.ndarray, caption: str, *, boxes: Sequence[tuple[int, Box]] = (), colour: str = "var(--line)"
) -> str:
    """An image [H, W, 3] with numbered boxes drawn over it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    drawn = "".join(_box(index, box, width=image.shape[1] / image.shape[0]) for index, box in boxes)
    overlay = f'<svg viewBox="0 0 {image.shape[1] / image.shape[0]:.4f} 1">{drawn}</svg>' if drawn else ""
    frame = (
        f'<div class="frame" style="border-color:{colour}"><img src="{source}" alt="{text(caption)}">{overlay}</div>'
    )
    return tag("figure", frame + tag("figcaption", text(caption)), class_="picture")


def _box(index: int, box: Box, *, width: float) -> str:
    """A box in a frame of height 1, its number on a flag above it, or below where there is no room."""
    x1, x2 = (width * v / 1000 for v in (box[0], box[2]))
    y1, y2 = box[1] / 1000, box[3] / 1000
    flag = 0.11
    top = y1 - flag if y1 >= flag else min(y2, 1 - flag)
    left = min(x1, width - flag)
    place = f'x="{x1:.4f}" y="{y1:.4f}" width="{x2 - x1:.4f}" height="{y2 - y1:.4f}"'
    return (
        f'<rect class="shade" {place}/><rect class="box" {place} stroke="{_colour(index)}"/>'
        f'<rect x="{left:.4f}" y="{top:.4f}" width="{flag}" height="{flag}" fill="{_colour(index)}"/>'
        f'<text transform="translate({left + flag / 2:.4f} {top + 0.088:.4f}) scale(.095)" '
        f'text-anchor="middle">{index + 1}</text>'
    )


def _actions(actions: np.ndarray) -> str:
    """The chunk [k, A] as a table, tinted by each value's share of the largest one in its column."""
    if actions.size == 0:
        return _note("action chunk", "not executed", is_bad=True)
    largest = np.abs(actions).max(axis=0)

    def cell(value: float, scale: float) -> str:
        tint = "63,127,196" if value >= 0 else "224,123,40"
        alpha = 0.35 * abs(value) / scale if scale else 0.0
        return tag("td", f"{value:+.3f}", style=f"background:rgba({tint},{alpha:.2f})")

    header = "<tr><th></th>" + "".join(tag("th", f"a{i}") for i in range(actions.shape[1])) + "</tr>"
    rows = "".join(
        f"<tr><th>{step}</th>" + "".join(cell(v, s) for v, s in zip(row, largest, strict=True)) + "</tr>"
        for step, row in enumerate(actions.tolist(), start=1)
    )
    grid = tag("table", header + rows, class_="actions")
    return tag("div", tag("span", "actions, one env step a row", class_="dim") + grid, class_="scroll")
