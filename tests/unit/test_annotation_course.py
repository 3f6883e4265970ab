"""Checks of a whole take: which of its decisions are blamed, and in which words."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from rlvla.annotation.course import check_course
from rlvla.config import CheckConfig, CheckName
from rlvla.types import Annotation
from tests import takes
from tests.takes import look, thought

Said = dict[int, Annotation]
SAME = "Move down to the red block."
LONG = "the gripper is still {} cm above the red block and moves down in order to get its fingers around the rim {}"


def blamed(check: CheckName, said: Said, *, trusted: Collection[int] = (), **cfg: Any) -> dict[int, str]:
    """Decision -> what one check finds wrong in the made-up take."""
    timeline = takes.timeline((*takes.SWITCHES, *takes.idle(1)))
    found = check_course(said, timeline, CheckConfig(names=(check,), **cfg), trusted=trusted)
    assert all(problem.check == check for problems in found.values() for problem in problems)
    return {index: problems[0].text for index, problems in found.items()}


def subjects(*names: str, start: int = 0) -> Said:
    return {index: thought(subject=name) for index, name in enumerate(names, start)}


def progress(*values: float | None) -> Said:
    return {index: thought(progress=value) for index, value in enumerate(values)}


def thoughts(*texts: str) -> Said:
    return {index: thought(text) for index, text in enumerate(texts)}


NEAR = thoughts(*(LONG.format(9, ending) for ending in ("now", "then", "soon", "here", "next", "again")))
COUNTED = thoughts(*(LONG.format(cm, "now") for cm in (12, 11, 10, 9, 8, 7)))
ROW, CLIMB = thoughts(*["move down to it"] * 7), progress(0.1, 0.6, 0.7, 0.8, 0.5, 0.9)


@pytest.mark.parametrize(
    ("check", "said", "options", "wanted"),
    [
        # The key frame that ends a sub-task decides; without it most do, and the first of equals.
        ("subject", subjects("mug", "mug", "red block", "bowl", "bowl", "the Bowls"), {}, [0, 1]),
        ("subject", subjects("mug", "red block"), {}, [1]),
        ("subject", subjects("mug", "bowl", start=3), {}, [4]),
        ("subject", subjects("mug", "bowl", "bowl", start=6), {}, [6]),
        ("subject", subjects("mug", "", "", "", "bowl", "bowl"), {}, []),
        ("subject", subjects("red block", "small red block", "block, red"), {}, [1]),
        # The fewest are blamed, and whoever contradicts a trusted decision.
        ("progress", progress(0.1, 0.9, 0.2, None, 0.3, 0.25, 0.4), {}, [1, 5]),
        ("progress", progress(None, 0.0, 0.5, 0.5, None, 1.0), {}, []),
        ("progress", progress(float("nan"), 0.5, float("inf"), 0.6), {}, []),
        ("progress", CLIMB, {}, [4]),
        ("progress", CLIMB, {"trusted": (4,)}, [1, 2, 3]),
        ("progress", CLIMB, {"trusted": (2, 5)}, [4]),
        ("progress", CLIMB, {"trusted": (0, 4, 5)}, [1, 2, 3]),
        # A row that is too long is cut at its end, or before the trusted decisions that end it.
        ("repetition", thoughts(SAME, SAME, "  move DOWN, to the red block", SAME, SAME, SAME, "up"), {}, [4, 5]),
        ("repetition", thoughts(SAME, SAME, SAME, SAME, "now close the fingers", SAME, SAME), {}, []),
        ("repetition", thoughts(*["move on"] * 6) | {2: look("is it between the fingers", "move on")}, {}, [4, 5]),
        ("repetition", ROW, {"trusted": (4,)}, [3, 5, 6]),
        ("repetition", ROW, {"trusted": (3, 4)}, [2, 5, 6]),
        ("repetition", ROW, {"trusted": (4, 5, 6)}, [1, 2, 3]),
        ("repetition", ROW, {"trusted": range(7)}, []),
        # Nearly the same is the same, unless numbers differ.
        ("repetition", NEAR, {}, [4, 5]),
        ("repetition", NEAR, {"similarity": 1.0}, []),
        ("repetition", COUNTED, {}, []),
    ],
)
def test_who_is_to_blame(check: CheckName, said: Said, options: dict[str, Any], wanted: list[int]) -> None:
    assert list(blamed(check, said, **options)) == wanted


def test_what_is_wrong_is_said() -> None:
    rule = "a sub-task has one, and it is"
    found = blamed("subject", subjects("mug", "red block", "red block", "bowl", "bowl", "bowl", "cup", "mug"))
    assert found == {
        0: f"the subject is 'mug': {rule} 'red block' at the key frame that ends it, decision 3",
        7: f"the subject is 'mug': {rule} 'cup' at most of its decisions",
    }
    assert blamed("progress", progress(0.1, 0.9, 0.2, 0.3, 0.25, 0.4)) == {
        1: "progress is 0.90, but 0.20 at decision 3 behind: it must not fall",
        4: "progress is 0.25, but 0.30 at decision 4 before: it must not fall",
    }
    rest = "is nearly what 4 decisions beside it think: at most 4 in a row may, say what is new here"
    assert blamed("repetition", thoughts(*[SAME] * 5)) == {4: f"{SAME!r} {rest}"}


def test_only_wanted_checks_run_and_problems_come_in_order() -> None:
    said = {1: thought(subject="mug", progress=0.2), 0: thought(subject="red", progress=0.9)}
    found = check_course(said, takes.timeline(), CheckConfig())
    assert {i: [problem.check for problem in problems] for i, problems in found.items()} == {1: ["subject", "progress"]}
    assert check_course(said, takes.timeline(), CheckConfig(names=("markup",))) == {}
    assert check_course({}, takes.timeline(), CheckConfig()) == {}


def test_time_grows_little_with_the_take() -> None:
    def seconds(length: int) -> float:
        long = replace(thought("a b c d e f g h " * 25), progress=0.5)
        varied = {index: replace(long, thoughts=(long.thoughts[0] + "xyz"[index % 3],)) for index in range(length)}
        timeline = takes.timeline(takes.idle(length))
        started = time.process_time()
        check_course(varied, timeline, CheckConfig())
        return time.process_time() - started

    assert min(seconds(1000) for _ in range(3)) < 0.5
