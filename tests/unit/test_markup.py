import json

import pytest

from rlvla.policies.markup import MAX_CALL_CHARS, parse, parse_box, parse_call, parse_text, print_zoom
from rlvla.policies.thinker.vocabulary import Vocabulary
from rlvla.types import SegmentKind

THINK, TOOL_CALL, ACT, MALFORMED = (
    SegmentKind.THINK,
    SegmentKind.TOOL_CALL,
    SegmentKind.ACT,
    SegmentKind.MALFORMED,
)


def kinds(text: str) -> list[SegmentKind]:
    return [span.kind for span, _ in parse_text(text)]


def test_generations_that_are_right() -> None:
    assert kinds("<think>left</think><tool>{}</tool>") == [THINK, TOOL_CALL]
    assert kinds("<tool>{}</tool>") == [TOOL_CALL]
    assert kinds("<think></think><act>abc</act>") == [THINK, ACT]
    assert parse_text("<think>left</think><act>abc</act>")[0][1] == "left"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "it ends before a tool call or an action"),
        ("<think>left</think>", "it ends before a tool call or an action"),
        ("hello", "expected <think>, <tool> or <act>, got text"),
        ("</act>", "expected <think>, <tool> or <act>, got </act>"),
        ("<result>", "expected <think>, <tool> or <act>, got <result>"),
        ("<think>left", "<think> is not closed"),
        ("<think>a<tool>b</tool></think>", "<tool> inside <think>"),
        ("<act>a<act>", "<act> inside <act>"),
        ("<think>a</think>then<act></act>", "expected <think>, <tool> or <act>, got text"),
        ("<think>a</think><think>b</think><act></act>", "two thoughts in a row"),
        ("<act></act>!", "something follows the act"),
        ("<tool></tool><act></act>", "something follows the tool_call"),
    ],
)
def test_generations_that_are_wrong_say_why(text: str, error: str) -> None:
    span, _ = parse_text(text)[-1]
    assert (span.kind, span.error) == (MALFORMED, error)


def test_the_right_part_before_a_malformed_one_is_kept() -> None:
    (thought, text), (rest, raw) = parse_text("<think>a</think>oops")
    assert (thought.kind, text) == (THINK, "a")
    assert (rest.start, rest.end, raw) == (3, 4, "oops")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "error: the call is not valid JSON"),
        ("{'name': 'zoom_in'}", "error: the call is not valid JSON"),
        ("__import__('os')", "error: the call is not valid JSON"),
        ("[" * 900, "error: the call is not valid JSON"),
        ("[]", "error: the call has no name"),
        ('{"name": 3, "arguments": {}}', "error: the call has no name"),
        ('{"name": "zoom_in"}', "error: the call has no arguments"),
        ('{"name": "zoom_in", "arguments": [1]}', "error: the call has no arguments"),
        (" " * (MAX_CALL_CHARS + 1), "error: the call is too long"),
    ],
)
def test_calls_that_are_wrong_say_why(text: str, error: str) -> None:
    assert parse_call(text) == error


@pytest.mark.parametrize("value", [None, "0 0 9 9", [1, 2, 3], [0, 0, 1.5, 9], [0, 0, True, 500], (0, 0, 50, 50)])
def test_a_box_is_a_list_of_four_integers(value: object) -> None:
    assert parse_box(value) == "error: bbox must be four integers"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([-1, 0, 500, 500], "error: bbox must lie in 0..1000"),
        ([0, 0, 500, 1001], "error: bbox must lie in 0..1000"),
        ([500, 0, 400, 500], "error: bbox is empty or too small"),
        ([0, 0, 9, 500], "error: bbox is empty or too small"),
        ([0, 0, 500, 9], "error: bbox is empty or too small"),
    ],
)
def test_boxes_outside_or_too_small(value: list[int], error: str) -> None:
    assert parse_box(value) == error


def test_print_zoom_is_the_documented_text() -> None:
    expected = '<tool>{"name": "zoom_in", "arguments": {"image": 1, "bbox": [1, 2, 30, 40]}}</tool>'
    assert print_zoom(1, (1, 2, 30, 40)) == expected
    assert json.loads(expected[6:-7])["arguments"]["bbox"] == [1, 2, 30, 40]


def test_token_ids_parse_like_text() -> None:
    vocabulary = Vocabulary(
        mark_ids={"<think>": 1, "</think>": 2, "<act>": 3, "</act>": 4},
        action_ids=(10, 11, 12),
        image_ids=(20,),
        placeholder_id=20,
        encode=lambda text: [],
        decode=lambda ids: "",
    )
    spans = parse(vocabulary.symbols([1, 50, 51, 2, 3, 12, 10, 4]))
    assert [(s.kind, s.start, s.end) for s in spans] == [(THINK, 0, 4), (ACT, 4, 8)]
    assert vocabulary.bins([12, 10]) == [2, 0]
    assert vocabulary.bins([12, 50]) is None
