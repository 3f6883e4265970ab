"""Checks of a whole take: what its annotations say of one another.

Decisions without an annotation are gaps: those on either side count as neighbours.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from rlvla.annotation.case import quote
from rlvla.annotation.names import find_name, name_words
from rlvla.annotation.take import Problem, Take
from rlvla.config import CheckConfig, CheckName
from rlvla.types import Annotation, Timeline

MAX_WORDS = 400
"""Of a thought that are compared; longer ones are the same only if they agree to the letter."""
_WORD = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?")
_NUMBERS = frozenset(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
)


class Course(NamedTuple):
    """What a check looks at."""

    annotations: Mapping[int, Annotation]
    """By decision, in order."""
    take: Take
    timeline: Timeline
    cfg: CheckConfig
    trusted: Collection[int]


def check_course(
    annotations: Mapping[int, Annotation],
    take: Take,
    timeline: Timeline,
    cfg: CheckConfig,
    *,
    trusted: Collection[int] = (),
) -> dict[int, tuple[Problem, ...]]:
    """What is wrong with annotations in view of the others.

    Args:
        annotations: by index of the decision, in any order, gaps allowed.
        take: that they are about.
        timeline: of the take.
        cfg: which checks to run; those of `checks.py` run there.
        trusted: decisions that have passed before, among each other: whoever contradicts them is to blame.

    Returns:
        Problems of the decisions to blame, in the order of decisions and of `COURSE_CHECKS`; the others are left out.
    """
    course = Course(dict(sorted(annotations.items())), take, timeline, cfg, trusted)
    problems: dict[int, list[Problem]] = {}
    for name, check in COURSE_CHECKS.items():
        if name in cfg.names:
            for index, text in check(course):
                if index in trusted:
                    continue
                problems.setdefault(index, []).append(Problem(check=name, text=text))
    return {index: tuple(problems[index]) for index in sorted(problems)}


def _subject(course: Course) -> Iterator[tuple[int, str]]:
    """A sub-task keeps the subject of the key frame that ends it, or else that of most of its decisions."""
    for segment in course.timeline.segments:
        names = {index: _meant(course, index) for index in segment if index in course.annotations}
        names = {index: name for index, name in names.items() if name}
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
                said, other = course.annotations[index].subject, course.annotations[wanted].subject
                yield index, f"the subject is {quote(said)}: a sub-task has one, and it is {quote(other)} at {where}"


def _meant(course: Course, index: int) -> tuple[str, ...]:
    """The object that an annotation names, as words in a fixed order; empty where it names none."""
    said, scene = course.annotations[index].subject, course.take.decisions[index].scene
    found = find_name(said, [item.name for item in scene.objects]) if scene is not None else ""
    return tuple(sorted(name_words(found or said)))


def _progress(course: Course) -> Iterator[tuple[int, str]]:
    """Progress never falls; the fewest decisions are to blame, of several such choices the later ones."""
    values = {index: one.progress for index, one in course.annotations.items() if one.progress is not None}
    values = {index: value for index, value in values.items() if math.isfinite(value)}
    slack = course.cfg.progress_slack
    kept = _climbers(values, course.trusted, slack)
    last = None
    for index, value in values.items():
        if index in kept:
            last = index
        elif last is not None and value < values[last] - slack:
            yield (
                index,
                f"progress is {value:.2f}, but {values[last]:.2f} at decision {last + 1} before: it must not fall",
            )
        else:
            behind = next(later for later in values if later > index and later in kept)
            text = (
                f"progress is {value:.2f}, but {values[behind]:.2f} at decision {behind + 1} behind: it must not fall"
            )
            yield index, text


def _climbers(values: Mapping[int, float], trusted: Collection[int], slack: float) -> set[int]:
    """Trusted decisions, and between each two of them the most that fit in."""
    kept, run, low = set[int](), list[int](), -math.inf
    for index in [*values, None]:
        if index is not None and index not in trusted:
            run.append(index)
            continue
        high = math.inf if index is None else values[index]
        fit = [i for i in run if low - slack <= values[i] <= high + slack]
        kept |= {fit[at] for at in longest_climb([values[i] for i in fit], slack)}
        if index is not None:
            kept, run, low = kept | {index}, [], values[index]
    return kept


def longest_climb(values: Sequence[float], slack: float) -> list[int]:
    """Positions of a longest subsequence that never falls by more than `slack` from one entry to the next.

    O(n log n): a Fenwick tree over the ranks of the values holds the best climb that ends at or below each. Of climbs
    of one length that can be continued, the one that ends first is.
    """
    ranks = sorted(set(values))
    tree = [(0, 0)] * (len(ranks) + 1)  # (length, minus the position where it ends)
    lengths, previous = [0] * len(values), [-1] * len(values)
    for at, value in enumerate(values):
        best = (0, 0)
        node = bisect_right(ranks, value + slack)
        while node:
            best = max(best, tree[node])
            node &= node - 1
        lengths[at], previous[at] = best[0] + 1, -best[1] if best[0] else -1
        node = bisect_right(ranks, value)
        while node < len(tree):
            tree[node] = max(tree[node], (lengths[at], -at))
            node += node & -node
    at = max(range(len(values)), key=lambda at: lengths[at], default=-1)
    climb: list[int] = []
    while at >= 0:
        climb.append(at)
        at = previous[at]
    return climb[::-1]


def _repetition(course: Course) -> Iterator[tuple[int, str]]:
    """Not too many decisions in a row conclude nearly the same."""
    most, run, before = course.cfg.max_repetition, 0, None
    for index, annotation in course.annotations.items():
        words = _words(annotation.thoughts[-1])
        run = run + 1 if before is not None and is_alike(before, words, course.cfg.similarity) else 1
        before = words
        if run > most:
            text = f"{quote(annotation.thoughts[-1])} is nearly what the {run - 1} decisions before think"
            yield index, f"{text}: at most {most} in a row may, say what is new here"


def _words(thought: str) -> list[str]:
    return _WORD.findall(thought.casefold())


def is_alike(first: Sequence[str], second: Sequence[str], similarity: float) -> bool:
    """Whether two thoughts share so many words in their order; the same numbers they must hold.

    The share is that of `difflib.SequenceMatcher.ratio`, but of the longest common subsequence.

    Args:
        first: words.
        second: words.
        similarity: 0 to 1.
    """
    if first == second:
        return True
    if len(first) > MAX_WORDS or len(second) > MAX_WORDS or _numbers(first) != _numbers(second):
        return False
    wanted = similarity * (len(first) + len(second)) / 2
    if min(len(first), len(second)) < wanted or (Counter(first) & Counter(second)).total() < wanted:
        return False
    return num_common(first, second) >= wanted


def _numbers(words: Sequence[str]) -> list[str]:
    return [word for word in words if word in _NUMBERS or word[0].isdigit()]


def num_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004, doi 10.1007/978-3-540-27801-6_14)."""
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    row = everything = (1 << len(first)) - 1
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(first) - row.bit_count()


COURSE_CHECKS: Mapping[CheckName, Callable[[Course], Iterator[tuple[int, str]]]] = {
    "subject": _subject,
    "progress": _progress,
    "repetition": _repetition,
}
"""Check -> (decision to blame, what is wrong)."""
