"""Checks of one annotation by itself; `course.py` has those of a whole take.

They look at the fields of an annotation, and at markup, length and repetition of its texts. What the sentences claim is
left to the judge (`openai.judge`). Each check yields what is wrong, in words for the annotator: what it wrote, and what
is wanted. All are pure, and total on any text, for the text of a model is untrusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from rlvla.annotation.take import Problem, Query
from rlvla.config import CheckConfig, CheckName
from rlvla.policies.markup import ToolCall, parse_box, parse_call, parse_text, print_think, print_zoom
from rlvla.types import Annotation, Box

_WORD, _NAME_WORD = re.compile(r"\w+"), re.compile(r"[^\W\d_]+|\d+")
_FULL_FRAME: Box = (0, 0, 1000, 1000)
_LOOPS = (re.compile(r"(?:^| )((?:\S+ ){1,8}?)\1{4}"), re.compile(r"(\S{1,8}?)\1{9}"))
"""Up to eight words five times in a row, up to eight characters ten times; both take linear time."""
_COMING = {"open": "opens next", "close": "closes next", "stay": "stays as it is to the end"}


def check_decision(annotation: Annotation, query: Query, cfg: CheckConfig) -> tuple[Problem, ...]:
    """What is wrong with one annotation, whatever those of other decisions say, in the order of `CHECKS`."""
    return tuple(
        Problem(check=name, text=text)
        for name, check in CHECKS.items()
        if name in cfg.names
        for text in check(annotation, query, cfg)
    )


def quote(text: str) -> str:
    """A value in quotes, cut where it is long, what cannot be printed escaped."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


@lru_cache(maxsize=4096)
def meaning(name: str) -> tuple[str, ...]:
    """What the names of one thing share: their words, in any case, order and number, without articles."""
    words = (word for word in _NAME_WORD.findall(name.casefold()) if word not in ("a", "an", "the"))
    return tuple(sorted(word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in words))


def with_whole_name(annotation: Annotation, query: Query) -> Annotation:
    """The same, its subject by the object's whole name where it is a part of the name of one object alone.

    "Black bowl" is a part of "akita black bowl"; "akita" is not, for the last word says what the object is.
    """
    objects = query.decision.scene.objects if query.decision.scene is not None else ()
    said = {*meaning(annotation.subject)}
    kinds = {item.name: {*meaning(" ".join(item.name.split()[-1:]))} for item in objects}
    whole = [name for name, kind in kinds.items() if kind <= said <= {*meaning(name)}]
    is_part = len(whole) == 1 and said != {*meaning(whole[0])}
    return replace(annotation, subject=whole[0]) if is_part else annotation


def _markup(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """The policy's own parser reads thoughts and looks as they were meant, as many as wanted, of pictures there are."""
    num_looks, is_key = len(annotation.looks), query.timeline.is_key[query.index]
    fewest, most = cfg.looks if is_key else (0, 0)
    if not fewest <= num_looks <= most:
        kind = "a key frame" if is_key else "a decision that is no key frame"
        wanted = str(most) if fewest == most else f"{fewest} to {most}"
        yield f"there are {num_looks} looks: {kind} wants {wanted}"
    for text in (*annotation.thoughts, annotation.subtask, annotation.subject):
        if not text.replace("\n", " ").isprintable():
            yield f"{quote(text)} holds characters that cannot be printed"
    num_images = len(query.decision.images)
    for number, (thought, look) in enumerate(zip(annotation.thoughts, [*annotation.looks, None], strict=True), 1):
        # One generation: a thought, and a look or the act.
        *rest, (span, last) = parse_text(print_think(thought) + (print_zoom(*look) if look else "<act></act>"))
        if [text for _, text in rest] != [thought]:
            advice = "write plain text without marks such as <think> or </think>"
            yield f"thought {number} breaks the markup ({span.error}): {advice}"
        elif look:
            call = parse_call(last)
            read = parse_box(call.arguments.get("bbox")) if isinstance(call, ToolCall) else call
            if isinstance(read, str):
                why = read.removeprefix("error: ")
                yield f"the zoom tool refuses the box {list(look[1])} of look {number}: {why}"
            elif read != look[1]:
                yield f"the box {list(look[1])} of look {number} is read as {list(read)}: integers are wanted"
        if look and not 0 <= look[0] < num_images:
            yield f"look {number} is at picture {look[0]}: pictures are numbered from 0 to {num_images - 1}"


def _box(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """A box of some size within the frame, of well less than all of it."""
    for number, (_, box) in enumerate(annotation.looks, 1):
        x1, y1, x2, y2 = box
        name = f"the box {list(box)} of look {number}"
        if min(box) < 0 or max(box) > 1000:
            yield f"{name} leaves the frame: coordinates go from 0 to 1000"
        elif x1 >= x2 or y1 >= y2:
            yield f"{name} is empty: wanted [left, top, right, bottom] with left < right and top < bottom"
        elif min(x2 - x1, y2 - y1) < cfg.min_box_side:
            yield f"{name} is {x2 - x1} wide and {y2 - y1} high: at least {cfg.min_box_side} each are wanted"
        elif box == _FULL_FRAME:
            yield f"{name} is the whole frame: choose the part that matters"
        elif (share := _area(box) / _area(_FULL_FRAME)) > cfg.max_box_area:
            yield f"{name} covers {share:.0%} of the frame: at most {cfg.max_box_area:.0%} are wanted"


def _area(box: Box) -> int:
    """Of a box, in square thousandths of the frame; 0 where it is turned inside out."""
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def _length(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """Neither a word or two, nor an essay."""
    fewest, most = cfg.num_words
    for number, thought in enumerate(annotation.thoughts, 1):
        if not fewest <= (num_words := len(_WORD.findall(thought))) <= most:
            yield f"thought {number} has {num_words} words: {fewest} to {most} are wanted"


def _gripper(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """The gripper's state before the decision, and what it does next, are those of the recording; or left out."""
    state = "closed" if query.timeline.is_closed[query.index] else "open"
    coming = query.timeline.next_switch(query.index) or "stay"
    if (said := annotation.gripper) and said.strip().lower() != state:
        yield f"gripper is {quote(said)}, but the gripper is {state} before this decision"
    if (said := annotation.next_gripper) and said.strip().lower() != coming:
        yield f"next_gripper is {quote(said)}, but the gripper {_COMING[coming]}: {quote(coming)} is wanted"


def _subject(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """The object named is in the scene and is what the sub-task is about."""
    scene, said, wanted = query.decision.scene, annotation.subject, _wanted(query)
    if scene is None:
        return
    names = [item.name for item in scene.objects]
    if not meaning(said):
        if wanted:
            yield f"the subject is missing: this sub-task is about {quote(wanted)}"
    elif meaning(said) not in map(meaning, [*names, wanted]):
        hint = quote(wanted) if wanted else "one of " + ", ".join(map(quote, names))
        yield f"the subject {quote(said)} names no object of the scene: wanted {hint}"
    elif wanted and meaning(said) != meaning(wanted):
        yield f"the subject is {quote(said)}, but this sub-task is about {quote(wanted)}"


def _wanted(query: Query) -> str:
    """The object of the sub-task: that of its last decision that has one; empty where nobody knows."""
    scenes = (query.take.decisions[i].scene for i in reversed(query.timeline.segment(query.index)))
    return next((scene.subject for scene in scenes if scene is not None and scene.subject), "")


def _progress(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """A share of the task; `course.py` sees to it that it grows."""
    progress = annotation.progress
    if progress is not None and not (math.isfinite(progress) and 0 <= progress <= 1):
        yield f"progress is {progress}: a share from 0 to 1 is wanted"


def _repetition(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """No thought says one thing over and over; `course.py` compares the thoughts of several decisions."""
    for number, thought in enumerate(annotation.thoughts, 1):
        text = " ".join(thought.casefold().split()) + " "
        if found := next((found for loop in _LOOPS if (found := loop.search(text))), None):
            yield f"thought {number} says {quote(found[1].strip())} over and over: write each thing once"


def _grounding(annotation: Annotation, query: Query, cfg: CheckConfig) -> Iterator[str]:
    """Looks show the subject, as far as the picture shows it; boxes are known of the first picture alone."""
    scene, said = query.decision.scene, annotation.subject
    looks = [(number, box) for number, (image, box) in enumerate(annotation.looks, 1) if image == 0]
    if scene is None or not looks:
        return
    item = next((item for item in scene.objects if meaning(item.name) == meaning(said)), None)
    if item is None:
        if not (wanted := _wanted(query)) or meaning(said) != meaning(wanted):
            yield f"look {looks[0][0]} is at {quote(said)}, which names no object of the scene"
        return
    thing, size = item.box, _area(item.box)
    for number, box in looks if size else ():
        where = f"the box {list(box)} of look {number}"
        shown = (max(box[0], thing[0]), max(box[1], thing[1]), min(box[2], thing[2]), min(box[3], thing[3]))
        if (share := _area(shown) / size) < cfg.containment:
            yield f"{where} shows {share:.0%} of the {item.name}: at least {cfg.containment:.0%} are wanted"
        if (spread := _area(box) / size) > cfg.spread:
            yield f"{where} is {spread:.0f} times as large as the {item.name}: at most {cfg.spread:g} times are wanted"


CHECKS: Mapping[CheckName, Callable[[Annotation, Query, CheckConfig], Iterator[str]]] = {
    "markup": _markup,
    "box": _box,
    "length": _length,
    "gripper": _gripper,
    "subject": _subject,
    "progress": _progress,
    "repetition": _repetition,
    "grounding": _grounding,
}
"""Check -> what it finds wrong with one annotation."""
