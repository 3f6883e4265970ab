"""The report's episodes: what the policy saw, where it looked closer, what it thought and what it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from report_video import Views, animation
from rlvla.policies.markup import ToolCall, parse_call
from rlvla.report.html_page import note, tag, text
from rlvla.report.html_picture import box_colour, picture
from rlvla.types import Box, EndReason, Segment, SegmentKind, Trajectory, Turn

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
    error = note("the simulator raised", trajectory.error, is_bad=True) if trajectory.error else ""
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
        picture(
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
    boxes = [(camera, box_colour(i), box) for i, (camera, box) in enumerate(_looks(turn)) if box is not None]
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
    if kind is SegmentKind.THINK or segment.is_reused:
        return note("thought, reused" if segment.is_reused else "thought", segment.text)
    if kind is SegmentKind.TOOL_CALL:
        return note("tool call, refused", f"{segment.text}\n{segment.error}", is_bad=True) if segment.error else ""
    if kind is SegmentKind.TOOL_RESULT and not segment.text:
        index, crop = next(crops)
        return picture(crop, f"zoom {index + 1}", colour=box_colour(index))
    if kind is SegmentKind.ACT:
        return _actions(turn.actions)
    if kind is SegmentKind.MALFORMED:
        return note(f"malformed: {segment.error}", segment.text, is_bad=True)
    return ""


def _actions(actions: np.ndarray) -> str:
    """The chunk [k, A] as a table, tinted by each value's share of the largest one in its column."""
    if actions.size == 0:
        return note("action chunk", "not executed", is_bad=True)
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
