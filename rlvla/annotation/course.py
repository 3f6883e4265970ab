"""Checks of a whole take: what its annotations say of one another.

Decisions without an annotation are gaps: those on either side count as neighbours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from rlvla.annotation.checks import meaning, quote
from rlvla.annotation.take import Problem
from rlvla.config import CheckConfig, CheckName
from rlvla.types import Annotation, Timeline

_WORD = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?")


class Course(NamedTuple):
    """What a check looks at."""

    annotations: Mapping[int, Annotation]
    """By decision, in order."""
    timeline: Timeline
    cfg: CheckConfig
    trusted: Collection[int]


def check_course(
    annotations: Mapping[int, Annotation], timeline: Timeline, cfg: CheckConfig, *, trusted: Collection[int] = ()
) -> dict[int, tuple[Problem, ...]]:
    """What is wrong with annotations in view of the others.

    Args:
        annotations: by index of the decision, in any order, gaps allowed.
        timeline: of the take.
        cfg: which checks to run; those of `checks.py` run there.
        trusted: decisions that have passed before, among each other: whoever contradicts them is to blame.

    Returns:
        Problems of the decisions to blame, in the order of decisions and of `COURSE_CHECKS`; the others are left out.
    """
    course = Course(dict(sorted(annotations.items())), timeline, cfg, trusted)
    problems: dict[int, tuple[Problem, ...]] = {}
    for name, check in COURSE_CHECKS.items():
        for index, text in check(course) if name in cfg.names else ():
            if index not in trusted:
                problems[index] = (*problems.get(index, ()), Problem(check=name, text=text))
    return dict(sorted(problems.items()))


def _subject(course: Course) -> Iterator[tuple[int, str]]:
    """A sub-task keeps the subject of the key frame that ends it, or else that of most of its decisions."""
    for segment in course.timeline.segments:
        said = {index: course.annotations[index].subject for index in segment if index in course.annotations}
        names = {index: name for index, subject in said.items() if (name := meaning(subject))}
        if not names:
            continue
        end = segment[-1]
        if course.timeline.is_key[end] and end in names:
            wanted, where = end, f"the key frame that ends it, decision {end + 1}"
        else:
            known = {index: name for index, name in names.items() if index in course.trusted} or names
            most = Counter(known.values()).most_common(1)[0][0]  # ties go to the first that was counted
            wanted, where = next(index for index, name in names.items() if name == most), "most of its decisions"
        for index, name in names.items():
            if name != names[wanted]:
                one = f"a sub-task has one, and it is {quote(said[wanted])} at {where}"
                yield index, f"the subject is {quote(said[index])}: {one}"


def _progress(course: Course) -> Iterator[tuple[int, str]]:
    """Progress never falls; the fewest decisions are to blame, of several such choices the later ones."""
    told = {index: one.progress for index, one in course.annotations.items() if one.progress is not None}
    values = {index: value for index, value in told.items() if math.isfinite(value)}
    slack = course.cfg.progress_slack
    kept = _climb(values, course.trusted, slack)
    for index in values.keys() - set(kept):
        value, before = values[index], max((i for i in kept if i < index), default=None)
        if before is not None and value < values[before] - slack:
            other, where = before, "before"
        else:
            other, where = min(i for i in kept if i > index), "behind"
        said = f"progress is {value:.2f}, but {values[other]:.2f} at decision {other + 1} {where}"
        yield index, f"{said}: it must not fall"


def _climb(values: Mapping[int, float], trusted: Collection[int], slack: float) -> list[int]:
    """Decisions whose values never fall by more than `slack`: all trusted ones, and as many others as go with them."""
    climbs: dict[int, tuple[int, int | None]] = {}  # its end -> (its length, a trusted one worth more than all others)
    for index, value in values.items():
        fit = [(-climbs[i][0], i) for i in climbs if values[i] <= value + slack]
        length, before = min(fit, default=(0, None))
        climbs[index] = ((len(values) + 1 if index in trusted else 1) - length, before)
    at, climb = min(climbs, key=lambda i: (-climbs[i][0], i), default=None), []
    while at is not None:
        climb.append(at)
        at = climbs[at][1]
    return climb


def _repetition(course: Course) -> Iterator[tuple[int, str]]:
    """Not too many decisions in a row conclude nearly the same; the last of them is to blame that is not trusted."""
    most, run, before = course.cfg.max_repetition, list[int](), None
    for index, annotation in course.annotations.items():
        words = Counter(_WORD.findall(annotation.thoughts[-1].casefold()))
        if before is None or not is_alike(before, words, course.cfg.similarity):
            run = []
        run.append(index)
        before = words
        blamed = next((i for i in reversed(run) if i not in course.trusted), None)
        if len(run) > most and blamed is not None:
            run.remove(blamed)
            text = f"{quote(course.annotations[blamed].thoughts[-1])} is nearly what {most} decisions beside it think"
            yield blamed, f"{text}: at most {most} in a row may, say what is new here"


def is_alike(first: Counter[str], second: Counter[str], similarity: float) -> bool:
    """Whether two thoughts, as counts of their words, share all their numbers and so much (0 to 1) of their words."""
    if any(word[0].isdigit() for word in (first - second) + (second - first)):
        return False
    return 2 * (first & second).total() >= similarity * (first.total() + second.total())


COURSE_CHECKS: Mapping[CheckName, Callable[[Course], Iterator[tuple[int, str]]]] = {
    "subject": _subject,
    "progress": _progress,
    "repetition": _repetition,
}
"""Check -> (decision to blame, what is wrong)."""
