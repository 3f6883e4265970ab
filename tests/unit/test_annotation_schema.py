"""Answers of a model: what is read, and what each that cannot be read is told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rlvla.annotation.schema import json_schema, read, read_verdict
from rlvla.types import Annotation

ANSWER: dict[str, Any] = {
    "subtask": "grasp the bowl",
    "subject": "bowl",
    "gripper": "open",
    "next_gripper": "close",
    "progress": 25,
    "observation": "The rim is close.",
    "image": 0,
    "bbox": [1, 2, 300, 1000],
    "conclusion": "It fits.",
}


def read_key(**changes: Any) -> Annotation | str:
    return read(json.dumps({**ANSWER, **changes}), is_key=True, num_images=1)


def test_a_key_frame_has_two_thoughts_and_the_look_between_them() -> None:
    assert read_key() == Annotation(
        thoughts=("The rim is close.", "It fits."),
        looks=((0, (1, 2, 300, 1000)),),
        subtask="grasp the bowl",
        subject="bowl",
        gripper="open",
        next_gripper="close",
        progress=0.25,
    )


def test_other_frames_have_one_thought() -> None:
    found = read(json.dumps({**ANSWER, "thought": "It is near."}), is_key=False, num_images=1)
    assert isinstance(found, Annotation)
    assert (found.thoughts, found.looks) == (("It is near.",), ())


@pytest.mark.parametrize("text", ["The bowl is left.", "", '{"subtask": "gra', "[" * 100_000, "1" * 5000, "\ud800"])
def test_what_is_no_json_is_said_to_be_none(text: str) -> None:
    assert read(text, is_key=True, num_images=1) == "the answer is not valid JSON"


WRAPPINGS = [
    "```json\n{}\n```",
    "```\n{}\n```",
    "```JSON {} ```",
    "  \n{}\n\n",
    "<think>\nI look.\n</think>\n\n{}",
    "<think></think>{}",
    "I look, the mark before it stands in the prompt.\n</think>\n{}",
    '<think>Shall it be {{"gripper": "open"}}, or ```json {{}}```?</think>```json\n{}\n```',
]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_a_server_puts_around_the_json_is_taken_off(wrapping: str) -> None:
    for changes in ({}, {"observation": "It says ``` and </think> and {."}):
        text = json.dumps({**ANSWER, **changes})
        assert read(wrapping.format(text), is_key=True, num_images=1) == read(text, is_key=True, num_images=1)
        assert isinstance(read(text, is_key=True, num_images=1), Annotation)


def test_a_fence_may_stand_between_sentences() -> None:
    text = json.dumps({**ANSWER, "observation": "It says ``` and {."})
    wrapped = f"Here is the JSON:\n```json5\n{text}\n```\nHope it helps!"
    assert read(wrapped, is_key=True, num_images=1) == read(text, is_key=True, num_images=1)


@pytest.mark.parametrize(
    "text", ["<think>I look.", "```json", "```", "</think>", "<think>a</think>", "```json\n{\n```"]
)
def test_what_holds_nothing_but_wrapping_is_no_json(text: str) -> None:
    assert read(text, is_key=True, num_images=1) == "the answer is not valid JSON"


@pytest.mark.parametrize("text", ["[1, 2]", "null", '"a"', "NaN"])
def test_what_is_no_object_is_said_to_be_none(text: str) -> None:
    assert read(text, is_key=True, num_images=1) == "the answer is not a JSON object"


@pytest.mark.parametrize(
    ("field", "values", "error"),
    [
        ("bbox", ([0, 0, 9], "0, 0, 9, 9", None, {}), "bbox: (List should have at least 4|Input should be a valid)"),
        ("bbox", ([0, 0, 9, 1001], [0, 0, 9, -1], [0, 0, 9, 2.0], [0, 0, 9, True]), r"bbox\.3: Input should be"),
        ("image", (1, -1, None, False, "0"), "image: (there are pictures 0 to 0|Input should be)"),
        ("progress", (101, 40.0, "40", float("nan"), -1), "progress: Input should be"),
        ("gripper", ("ajar", "", None, ["open"], {}), "gripper: Input should be 'open' or 'closed'"),
        ("next_gripper", ("opens", "", None), "next_gripper: Input should be 'open', 'close' or 'stay'"),
        ("subject", (3, None, ["bowl"], {}), "subject: Input should be a valid string"),
        ("observation", (" \t\n ", "\u3000"), "observation: is empty"),
        ("subtask", ("grasp\x00it", "\x1b[1m"), "subtask: holds characters that cannot be printed"),
        ("subtask", ("\ud800", ""), "subtask: (Input|String) should"),
    ],
)
def test_a_field_that_is_wrong_is_named(field: str, values: tuple, error: str) -> None:
    for value in values:
        assert re.match(error, str(read_key(**{field: value}))), value


def test_a_text_that_the_server_had_to_end_is_refused() -> None:
    fields = json_schema(is_key=True, num_images=1)["properties"]
    for name in ("subtask", "subject", "observation", "conclusion"):
        most = fields[name]["maxLength"]
        assert isinstance(read_key(**{name: "x" * (most - 1)}), Annotation)
        assert f"{name}: String should have at most {most - 1} characters" in str(read_key(**{name: "x" * most}))


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert str(read_key(progress=-1, bbox=[], gripper="")).count(";") == 2
    assert str(read("{}", is_key=True, num_images=1)).count(";") == len(ANSWER) - 1


def test_a_box_without_area_is_left_to_the_checks() -> None:
    found = read_key(bbox=[500, 500, 500, 100])
    assert isinstance(found, Annotation)
    assert found.looks == ((0, (500, 500, 500, 100)),)


def test_a_line_break_or_a_tab_in_a_text_is_a_space_escaped_or_not() -> None:
    for text in (
        json.dumps({**ANSWER, "conclusion": " It\n\tfits. "}),
        json.dumps(ANSWER).replace("It fits", "It\tfits"),
    ):
        found = read(text, is_key=True, num_images=1)
        assert isinstance(found, Annotation)
        assert found.thoughts[1] == "It fits."


@pytest.mark.parametrize("is_key", [True, False])
def test_the_schema_is_strict_and_bounds_every_string(is_key: bool) -> None:
    found = json_schema(is_key=is_key, num_images=2)
    assert found["additionalProperties"] is False
    assert found["required"] == list(found["properties"])
    strings = [field for field in found["properties"].values() if field["type"] == "string"]
    assert all("enum" in field or 0 < field["maxLength"] <= 480 for field in strings)


def test_the_look_is_bounded_by_the_cameras_and_the_frame() -> None:
    fields = json_schema(is_key=True, num_images=3)["properties"]
    assert fields["image"] == {"type": "integer", "minimum": 0, "maximum": 2}
    assert fields["bbox"]["items"] == {"type": "integer", "minimum": 0, "maximum": 1000}
    assert (fields["bbox"]["minItems"], fields["bbox"]["maxItems"]) == (4, 4)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ('{"reason": "All is well.", "verdict": "yes"}', ""),
        ('<think>Well.</think>```json\n{"verdict": "yes", "reason": "Fine."}\n```', ""),
        ('{"reason": "It is  shut.", "verdict": "no"}', "a judge refuses it: It is shut."),
        ("yes", "the judge's verdict cannot be read: the answer is not valid JSON"),
        ("[]", "the judge's verdict cannot be read: the answer is not a JSON object"),
        ('{"reason": " ", "verdict": "maybe"}', "read: reason: is empty; verdict: Input should be 'yes' or 'no'"),
        ('{"verdict": true}', "read: reason: Field required; verdict: Input should be 'yes' or 'no'"),
    ],
)
def test_a_judge_says_yes_or_why_not(text: str, refusal: str) -> None:
    found = read_verdict(text)
    assert found.endswith(refusal)
    assert bool(found) == bool(refusal)
