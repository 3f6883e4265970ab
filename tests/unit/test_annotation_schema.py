"""Answers of a model: what is read, and what each that cannot be read is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvla.annotation.schema import json_schema, read, read_verdict
from rlvla.annotation.take import Kind
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
GOOD = Annotation(
    thoughts=("The rim is close.", "It fits."),
    looks=((0, (1, 2, 300, 1000)),),
    subtask="grasp the bowl",
    subject="bowl",
    gripper="open",
    next_gripper="close",
    progress=0.25,
)


def read_key(text: str | None = None, **changes: Any) -> Annotation | str:
    return read(json.dumps({**ANSWER, **changes}) if text is None else text, is_key=True, num_images=1)


def test_a_key_frame_has_two_thoughts_and_a_look_and_other_frames_one_thought() -> None:
    assert read_key() == GOOD
    assert read_key(bbox=[9, 9, 9, 1]) == replace(GOOD, looks=((0, (9, 9, 9, 1)),))  # left to the checks
    found = read(json.dumps({**ANSWER, "thought": "It is near."}), is_key=False, num_images=1)
    assert isinstance(found, Annotation)
    assert (found.thoughts, found.looks) == (("It is near.",), ())


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        ("JSON", ["The bowl is left.", "", '{"subtask": "gra', "[" * 100_000, "1" * 5000, "\ud800"]),
        ("JSON", ["<think>I look.", "```json", "```", "</think>", "<think>a</think>", "```json\n{\n```"]),
        ("a JSON object", ["[1, 2]", "null", '"a"', "NaN"]),
    ],
)
def test_what_is_no_json_is_said_to_be_none(wanted: str, texts: list[str]) -> None:
    for text in texts:
        assert read_key(text) == f"the answer is not {'valid ' if wanted == 'JSON' else ''}{wanted}"


@pytest.mark.parametrize(
    "wrapping",
    [
        "```json\n{}\n```",
        "```\n{}\n```",
        "```JSON {} ```",
        "  \n{}\n\n",
        "<think>\nI look.\n</think>\n\n{}",
        "<think></think>{}",
        "I look, the mark before it stands in the prompt.\n</think>\n{}",
        '<think>Shall it be {{"gripper": "open"}}, or ```json {{}}```?</think>```json\n{}\n```',
    ],
)
def test_what_a_server_puts_around_the_json_is_taken_off(wrapping: str) -> None:
    for changes in ({}, {"observation": "It says ``` and </think> and {."}):
        text = json.dumps({**ANSWER, **changes})
        assert read_key(wrapping.format(text)) == read_key(text)
        assert isinstance(read_key(text), Annotation)
    text = json.dumps({**ANSWER, "observation": "It says ``` and {."})
    assert read_key(f"Here is the JSON:\n```json5\n{text}\n```\nHope it helps!") == read_key(text)


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


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert str(read_key(progress=-1, bbox=[], gripper="")).count(";") == 2
    assert str(read_key("{}")).count(";") == len(ANSWER) - 1


def test_a_line_break_or_a_tab_in_a_text_is_a_space_escaped_or_not() -> None:
    assert read_key(conclusion=" It\n\tfits. ") == GOOD
    assert read_key(json.dumps(ANSWER).replace("It fits", "It\tfits")) == GOOD


def test_the_schemas_are_strict_and_a_text_that_the_server_had_to_end_is_refused() -> None:
    for kind in get_args(Kind):
        found = json_schema(kind, 3)
        assert found["additionalProperties"] is False
        assert found["required"] == list(found["properties"])
        strings = [field for field in found["properties"].values() if field["type"] == "string"]
        assert all("enum" in field or 0 < field["maxLength"] <= 480 for field in strings)
    fields = json_schema("key_frame", 3)["properties"]
    assert fields["image"] == {"type": "integer", "minimum": 0, "maximum": 2}
    side = {"type": "integer", "minimum": 0, "maximum": 1000}
    assert fields["bbox"] == {"type": "array", "items": side, "minItems": 4, "maxItems": 4}
    for name in ("subtask", "subject", "observation", "conclusion"):
        most = fields[name]["maxLength"]
        assert isinstance(read_key(**{name: "x" * (most - 1)}), Annotation)
        assert f"{name}: String should have at most {most - 1} characters" in str(read_key(**{name: "x" * most}))


@given(st.text(st.characters(codec=None)))
def test_any_text_is_read(text: str) -> None:
    assert all(isinstance(read(text, is_key=is_key, num_images=1), str) for is_key in (True, False))
    assert read_verdict(text)


WORDS = st.text(st.sampled_from("abc .,"), min_size=1, max_size=40).filter(str.strip)


@given(st.data(), st.booleans(), st.integers(1, 3))
def test_what_keeps_the_schema_is_an_annotation(data: st.DataObject, is_key: bool, num_images: int) -> None:
    fields: dict[str, Any] = {}
    for name, field in json_schema("key_frame" if is_key else "between", num_images)["properties"].items():
        if field["type"] == "integer":
            fields[name] = data.draw(st.integers(field["minimum"], field["maximum"]))
        elif field["type"] == "array":
            fields[name] = data.draw(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
        else:
            fields[name] = data.draw(st.sampled_from(field["enum"]) if "enum" in field else WORDS)
    found = read(json.dumps(fields), is_key=is_key, num_images=num_images)
    assert isinstance(found, Annotation)
    assert found.looks == (((fields["image"], tuple(fields["bbox"])),) if is_key else ())
    assert (found.gripper, found.next_gripper) == (fields["gripper"], fields["next_gripper"])
    assert found.progress == fields["progress"] / 100
    texts = [fields[name] for name in (("observation", "conclusion") if is_key else ("thought",))]
    assert (*found.thoughts, found.subtask) == tuple(" ".join(text.split()) for text in (*texts, fields["subtask"]))


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
