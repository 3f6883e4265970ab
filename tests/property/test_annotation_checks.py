import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvla.annotation.checks import CHECKS, check_decision
from rlvla.annotation.course import check_course
from rlvla.config import CheckConfig, CheckName
from rlvla.policies.markup import MARKS, ToolCall, parse_box, parse_call, parse_text, print_think, print_zoom
from rlvla.types import Annotation, Box, SegmentKind
from tests import takes

KEY, NUM_DECISIONS = 2, len(takes.SWITCHES)
WORDS = ["gripper", "open", "closed", "the", "red", "block", "blocks", "bowl", "go to", "12", "3", ",", ".", "ignore"]
spoken = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)
marked = st.lists(st.sampled_from(MARKS) | st.text(max_size=5), max_size=6).map("".join)
any_text = st.text(st.characters(), max_size=60) | marked | spoken
coordinates = st.integers(-50, 1050)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
progresses = st.none() | st.floats(0, 1) | st.sampled_from([0.2, 0.4, 0.6])


@st.composite
def annotations(draw: st.DrawFn) -> Annotation:
    looks = draw(st.lists(st.tuples(st.integers(-1, 2), boxes), max_size=2))
    return Annotation(
        thoughts=tuple(draw(any_text) for _ in range(len(looks) + 1)),
        looks=tuple(looks),
        subtask=draw(any_text),
        subject=draw(any_text | st.sampled_from(["red block", "the Blue Blocks"])),
        gripper=draw(st.sampled_from(["", "open", "closed"]) | any_text),
        next_gripper=draw(st.sampled_from(["", "open", "close", "stay"]) | any_text),
        progress=draw(progresses | st.floats()),
    )


def by_decision(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(st.integers(0, NUM_DECISIONS - 1), values, max_size=NUM_DECISIONS)


@given(annotations(), st.integers(0, NUM_DECISIONS - 1), st.booleans())
def test_any_annotation_has_an_answer_and_always_the_same(annotation: Annotation, index: int, is_known: bool) -> None:
    asked = takes.query(index, of=takes.take(takes.SUBJECTS if is_known else None))
    problems = check_decision(annotation, asked, CheckConfig())
    assert problems == check_decision(annotation, asked, CheckConfig())
    assert all(problem.text.strip() for problem in problems)
    for name in CHECKS:
        alone = check_decision(annotation, asked, CheckConfig(names=(name,)))
        assert alone == tuple(problem for problem in problems if problem.check == name)


@given(any_text, any_text, st.integers(0, 1), boxes)
def test_what_passes_reads_back_as_it_was_meant(before: str, after: str, image: int, box: Box) -> None:
    annotation = takes.look(before, after, box=box, image=image)
    asked = takes.query(KEY, of=takes.take(num_images=2))
    is_sound = not check_decision(annotation, asked, CheckConfig(names=("markup",)))
    first = parse_text(print_think(before) + print_zoom(image, box))
    second = parse_text(print_think(after) + "<act></act>")
    call = parse_call(first[-1][1])
    reads_back = (
        [(span.kind, text) for span, text in first[:-1]] == [(SegmentKind.THINK, before)]
        and isinstance(call, ToolCall)
        and call.arguments["image"] == image
        and parse_box(call.arguments["bbox"]) == box
        and [(span.kind, text) for span, text in second] == [(SegmentKind.THINK, after), (SegmentKind.ACT, "")]
    )
    assert is_sound == (reads_back and (before + after).replace("\n", " ").isprintable())


@given(by_decision(annotations()), st.randoms(use_true_random=False))
def test_a_course_is_judged_whatever_the_order_of_its_annotations(course: dict, random: object) -> None:
    found = check_course(course, takes.timeline(), CheckConfig())
    items = list(course.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert check_course(dict(items), takes.timeline(), CheckConfig()) == found
    assert list(found) == sorted(found)
    assert found.keys() <= course.keys()


@pytest.mark.parametrize("name", ["progress", "repetition"])
@given(st.lists(annotations(), max_size=6), st.sets(st.integers(0, 11), min_size=6, max_size=6))
def test_gaps_make_no_difference(name: CheckName, course: list[Annotation], places: set[int]) -> None:
    timeline, cfg = takes.timeline(takes.idle(12)), CheckConfig(names=(name,), max_repetition=2)
    spread = dict(zip(sorted(places), course, strict=False))
    found, far = (check_course(said, timeline, cfg) for said in (dict(enumerate(course)), spread))
    assert [index in found for index in range(len(course))] == [index in far for index in spread]


def num_blamed_at_least(values: Sequence[float], slack: float) -> int:
    """By trying all subsequences."""
    for num_kept in range(len(values), -1, -1):
        for kept in itertools.combinations(values, num_kept):
            if all(later >= earlier - slack for earlier, later in itertools.pairwise(kept)):
                return len(values) - num_kept
    raise AssertionError


@given(by_decision(progresses), st.sampled_from([0.0, 0.1, 0.25]))
def test_as_few_as_possible_are_blamed_for_progress(values: dict[int, float | None], slack: float) -> None:
    course = {index: takes.thought(progress=value) for index, value in values.items()}
    cfg = CheckConfig(names=("progress",), progress_slack=slack)
    found = check_course(course, takes.timeline(), cfg)
    told = {index: value for index, value in sorted(values.items()) if value is not None}
    assert len(found) == num_blamed_at_least(list(told.values()), slack)
    kept = [value for index, value in told.items() if index not in found]
    assert all(later >= earlier - slack for earlier, later in itertools.pairwise(kept))


@pytest.mark.parametrize(
    "piece",
    ["gripper ", "open ", "a", "0", " ", "\n", "<", "[{", "\x00", "red block and ", "a b c d e f g h i "],
)
def test_time_grows_linearly(piece: str) -> None:
    def seconds(length: int) -> float:
        annotation = takes.thought(piece * length, subtask=piece * length + "closed", subject=piece * length)
        asked = takes.query(KEY, of=takes.take())
        started = time.process_time()
        check_decision(annotation, asked, CheckConfig())
        return time.process_time() - started

    # Ten times the length takes ten times as long; backtracking would take a hundred times.
    assert min(seconds(20_000) for _ in range(2)) < 40 * min(seconds(2_000) for _ in range(2)) + 0.02
