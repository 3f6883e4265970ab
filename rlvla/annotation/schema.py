"""What a model must answer: the JSON schemas, and a reader that turns any text into an annotation or a complaint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlvla.types import Annotation

MAX_CHARS = {"subtask": 80, "subject": 60, "observation": 480, "conclusion": 480, "thought": 480, "reason": 480}
"""Longest string of each field: 80 English words for a thought. It ends a model that would run on for ever; what the
server cuts there is no sentence, so it counts as an error."""
GRIPPER_STATES = ("open", "closed")
NEXT_GRIPPER = ("open", "close", "stay")
VERDICTS = ("yes", "no")
UNREAD = "the judge's verdict cannot be read: "
PERCENT = 100
_FENCE = "```"


def json_schema(*, is_key: bool, num_images: int) -> dict[str, Any]:
    """JSON schema of an answer; the fields stand in the order in which a model had best think of them.

    Args:
        is_key: of a key frame, with a look; else of a frame between two of them, without.
        num_images: cameras to choose the look's picture from.
    """
    fields: dict[str, Any] = {
        "subtask": _text("subtask"),
        "subject": _text("subject"),
        "gripper": _choice(GRIPPER_STATES),
        "next_gripper": _choice(NEXT_GRIPPER),
        "progress": _integer(PERCENT),
    }
    if is_key:
        fields["observation"] = _text("observation")
        fields["image"] = _integer(num_images - 1)
        fields["bbox"] = {"type": "array", "items": _integer(1000), "minItems": 4, "maxItems": 4}
        fields["conclusion"] = _text("conclusion")
    else:
        fields["thought"] = _text("thought")
    return _object(fields)


def verdict_schema() -> dict[str, Any]:
    """JSON schema of a judge's answer: the reason first, so that the verdict follows from it."""
    return _object({"reason": _text("reason"), "verdict": _choice(VERDICTS)})


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _choice(values: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _text(field: str) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": MAX_CHARS[field]}


def _integer(most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "maximum": most}


def read(text: str, *, is_key: bool, num_images: int) -> Annotation | str:
    """An answer, or a text that tells the model everything that is wrong with it; never raises.

    A box of the right type is taken as it is: whether it makes sense is a matter of the checks. A code fence around the
    JSON, and the thoughts of a model before it, are no part of the answer: servers without a parser for them send both.

    Args:
        text: any.
        is_key: see `json_schema`.
        num_images: see `json_schema`.
    """
    if isinstance(fields := _fields(text), str):
        return fields
    answer = _Answer(fields)
    subtask, subject = answer.text("subtask"), answer.text("subject")
    gripper, next_gripper = answer.choice("gripper", GRIPPER_STATES), answer.choice("next_gripper", NEXT_GRIPPER)
    progress = answer.integer("progress", PERCENT)
    if is_key:
        thoughts = (answer.text("observation"), answer.text("conclusion"))
        looks = ((answer.integer("image", num_images - 1), answer.box("bbox")),)
    else:
        thoughts, looks = (answer.text("thought"),), ()
    if answer.problems:
        return "; ".join(answer.problems)
    return Annotation(
        thoughts=thoughts,
        looks=looks,
        subtask=subtask,
        subject=subject,
        gripper=gripper,
        next_gripper=next_gripper,
        progress=progress / PERCENT,
    )


def read_verdict(text: str) -> str:
    """Why a judge refuses, or why its answer cannot be read; empty where it says yes. Never raises."""
    if isinstance(fields := _fields(text), str):
        return UNREAD + fields
    answer = _Answer(fields)
    reason, verdict = answer.text("reason"), answer.choice("verdict", VERDICTS)
    if answer.problems:
        return UNREAD + "; ".join(answer.problems)
    return "" if verdict == "yes" else f"a judge refuses it: {reason}"


def _fields(text: str) -> dict[str, Any] | str:
    """The JSON object in an answer, or why there is none."""
    try:
        # Not strict: in strings of bounded length xgrammar lets line breaks and other control characters through.
        fields = json.loads(_bare(text), strict=False)
    except (ValueError, RecursionError):
        return "the answer is not valid JSON"
    return fields if isinstance(fields, dict) else "the answer is not a JSON object"


def _bare(text: str) -> str:
    """An answer without thoughts before it and a fence around it."""
    text = text.strip()
    if not text.startswith(("{", _FENCE)):  # a chat template may have put the opening mark into the prompt
        text = text.partition("</think>")[2].strip() or text
    if _FENCE in text and not text.startswith("{"):  # with a sentence before or behind it, maybe
        inside = text.partition(_FENCE)[2]
        inside = inside.rpartition(_FENCE)[0] or inside
        text = inside[max(0, inside.find("{")) :]  # behind `json`, mostly
    return text


class _Answer:
    """Fields of any type; each method reads one, and where that fails notes why and returns a stand-in."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str):
            return self._refuse(f"{name} must be a text", "")
        if len(value) >= MAX_CHARS[name]:
            return self._refuse(f"{name} is too long and was cut off: stay well below {MAX_CHARS[name]} characters", "")
        words = " ".join(value.split())
        if not words:
            return self._refuse(f"{name} is empty", "")
        if not words.isprintable():  # also half a surrogate pair, which no file can hold
            return self._refuse(f"{name} holds characters that cannot be printed", "")
        return words

    def choice(self, name: str, values: Sequence[str]) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str) or value not in values:
            *rest, last = (f'"{value}"' for value in values)
            return self._refuse(f"{name} must be {', '.join(rest)} or {last}", "")
        return value

    def integer(self, name: str, most: int) -> int:
        value = self.fields.get(name)
        if type(value) is not int or not 0 <= value <= most:  # True and 1.0 are no integers here
            return self._refuse(f"{name} must be an integer from 0 to {most}", 0)
        return value

    def box(self, name: str) -> tuple[int, int, int, int]:
        value = self.fields.get(name)
        if not isinstance(value, list) or len(value) != 4 or not all(type(v) is int and 0 <= v <= 1000 for v in value):
            return self._refuse(f"{name} must be four integers from 0 to 1000: left, top, right, bottom", (0, 0, 0, 0))
        return value[0], value[1], value[2], value[3]

    def _refuse(self, problem: str, stand_in: Any) -> Any:
        self.problems.append(problem)
        return stand_in
