"""Checks of one annotation by itself; `course.py` has those of a whole take.

Each takes a `Case` and yields what is wrong, in words for the annotator: what it wrote, and what is wanted. All are
pure, and total on any text, for the text of a model is untrusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from rlvla.annotation.case import Case, area, quote
from rlvla.annotation.gripper_claims import Claim, Motion, claims, contradiction
from rlvla.annotation.prose import flaws
from rlvla.annotation.subjects import check_grounding, check_subject
from rlvla.annotation.take import Problem, Take
from rlvla.config import CheckConfig, CheckName
from rlvla.policies.markup import ToolCall, parse_box, parse_call, parse_text, print_think, print_zoom
from rlvla.types import Annotation, Box, Switch, Timeline

FULL_FRAME: Box = (0, 0, 1000, 1000)
LIFT_DECISIONS = 3
"""For so long after the gripper has closed "pick up" may be said of lifting."""
_ACT = "<act></act>"


def check_decision(
    annotation: Annotation, take: Take, timeline: Timeline, index: int, cfg: CheckConfig
) -> tuple[Problem, ...]:
    """What is wrong with one annotation, whatever those of other decisions say.

    Args:
        annotation: any.
        take: that it is about.
        timeline: of the take.
        index: of the decision.
        cfg: which checks to run; those of `course.py` run there.

    Returns:
        Problems, in the order of `CHECKS`; empty where there are none.
    """
    case = Case(annotation, take, timeline, index, cfg)
    return tuple(
        Problem(check=name, text=text) for name, check in CHECKS.items() if name in cfg.names for text in check(case)
    )


def _texts(annotation: Annotation) -> Iterator[tuple[str, str]]:
    """(what it is called, text), of all that speaks of what is done."""
    for number, thought in enumerate(annotation.thoughts, 1):
        yield ("the thought" if len(annotation.thoughts) == 1 else f"thought {number}"), thought
    yield "the sub-task", annotation.subtask


def _markup(case: Case) -> Iterator[str]:
    """The policy's own parser reads thoughts and looks as they were meant, as many as wanted, of pictures there are."""
    annotation, num_looks = case.annotation, len(case.annotation.looks)
    fewest, most = case.cfg.looks if case.timeline.is_key[case.index] else (0, 0)
    if not fewest <= num_looks <= most:
        kind = "a key frame" if case.timeline.is_key[case.index] else "a decision that is no key frame"
        wanted = str(most) if fewest == most else f"{fewest} to {most}"
        yield f"there are {num_looks} looks: {kind} wants {wanted}"
    num_images = len(case.decision.images)
    for number, (image, box) in enumerate(annotation.looks, 1):
        if not 0 <= image < num_images:
            yield f"look {number} is at picture {image}: pictures are numbered from 0 to {num_images - 1}"
        yield from _call_markup(number, annotation.thoughts[number - 1], image, box)
    *rest, last = parse_text(print_think(annotation.thoughts[-1]) + _ACT)
    if [text for _, text in rest] != [annotation.thoughts[-1]]:
        yield _broken(len(annotation.thoughts), last[0].error)


def _call_markup(number: int, thought: str, image: int, box: Box) -> Iterator[str]:
    """Whether one generation, a thought and a look, is read as it was meant."""
    *rest, last = parse_text(print_think(thought) + print_zoom(image, box))
    if [text for _, text in rest] != [thought]:
        yield _broken(number, last[0].error)
        return
    call = parse_call(last[1])
    read = parse_box(call.arguments.get("bbox")) if isinstance(call, ToolCall) else call
    if isinstance(read, str):
        yield f"the zoom tool refuses the box {list(box)} of look {number}: {read.removeprefix('error: ')}"
    elif read != box:
        yield f"the box {list(box)} of look {number} is read as {list(read)}: integers are wanted"


def _broken(number: int, error: str) -> str:
    return f"thought {number} breaks the markup ({error}): write plain text without marks such as <think> or </think>"


def _box(case: Case) -> Iterator[str]:
    """A box of some size within the frame, of well less than all of it."""
    cfg = case.cfg
    for number, (_, box) in enumerate(case.annotation.looks, 1):
        x1, y1, x2, y2 = box
        name = f"the box {list(box)} of look {number}"
        if min(box) < 0 or max(box) > 1000:
            yield f"{name} leaves the frame: coordinates go from 0 to 1000"
        elif x1 >= x2 or y1 >= y2:
            yield f"{name} is empty: wanted [left, top, right, bottom] with left < right and top < bottom"
        elif min(x2 - x1, y2 - y1) < cfg.min_box_side:
            yield f"{name} is {x2 - x1} wide and {y2 - y1} high: at least {cfg.min_box_side} each are wanted"
        elif box == FULL_FRAME:
            yield f"{name} is the whole frame: choose the part that matters"
        elif (share := area(box) / area(FULL_FRAME)) > cfg.max_box_area:
            yield f"{name} covers {share:.0%} of the frame: at most {cfg.max_box_area:.0%} are wanted"


def _length(case: Case) -> Iterator[str]:
    """Neither a word or two, nor an essay."""
    fewest, most = case.cfg.num_words
    for number, thought in enumerate(case.annotation.thoughts, 1):
        if not fewest <= (num_words := len(thought.split())) <= most:
            yield f"thought {number} has {num_words} words: {fewest} to {most} are wanted"


def _language(case: Case) -> Iterator[str]:
    """English prose in all that a data set keeps."""
    for name, text in (*_texts(case.annotation), ("the subject", case.annotation.subject)):
        for flaw in flaws(text):
            yield f"{name} is not plain English prose: {flaw}"


def _gripper(case: Case) -> Iterator[str]:
    """What is said of the gripper holds before the decision, or is what it does next."""
    annotation, motion = case.annotation, _motion(case.timeline, case.index)
    state = "closed" if motion.is_closed else "open"
    if annotation.gripper and annotation.gripper.strip().lower() != state:
        yield f"gripper is {quote(annotation.gripper)}, but the gripper is {state} before this decision"
    for name, text in _texts(annotation):
        found = claims(text, annotation.subject, case.decision.instruction)
        if (claim := contradiction(found, motion)) is not None:
            yield f"{name} says {quote(claim.words)}, but {_truth(claim, motion, state)}"


def _motion(timeline: Timeline, index: int) -> Motion:
    is_closed, ahead = timeline.is_closed[index], timeline.next_switch(index)
    return Motion(
        is_closed=is_closed,
        now=timeline.switches[index],
        ahead=ahead,
        holds=is_closed and "close" in timeline.switches[:index],
        lifts=is_closed and (not ahead or "close" in timeline.switches[max(0, index - LIFT_DECISIONS) : index]),
    )


def _truth(claim: Claim, motion: Motion, state: str) -> str:
    """What holds instead of a claim."""
    if claim.kind in ("state", "done"):
        return f"the gripper is {state} before this decision"
    names: Mapping[Switch, str] = {"open": "opens", "close": "closes", "": f"stays {state} to the end"}
    when = "in this decision" if motion.now else "next" if motion.ahead else ""
    return f"the gripper is {state} before this decision, and {names[motion.ahead]} {when}".rstrip()


def _progress(case: Case) -> Iterator[str]:
    """A share of the task; `course.py` sees to it that it grows."""
    progress = case.annotation.progress
    if progress is not None and not (math.isfinite(progress) and 0 <= progress <= 1):
        yield f"progress is {progress}: a share from 0 to 1 is wanted"


CHECKS: Mapping[CheckName, Callable[[Case], Iterator[str]]] = {
    "markup": _markup,
    "box": _box,
    "length": _length,
    "language": _language,
    "gripper": _gripper,
    "subject": check_subject,
    "progress": _progress,
    "grounding": check_grounding,
}
"""Check -> what it finds wrong with one annotation."""
