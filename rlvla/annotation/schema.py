"""What a model must answer: JSON schemas, and readers that turn any text into an answer or a complaint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rlvla.annotation.take import Kind
from rlvla.types import Annotation

GRIPPER_STATES = ("open", "closed")
PERCENT = 100
UNREAD = "the judge's verdict cannot be read: "
_FENCE = "```"


def _on_one_line(text: str) -> str:
    words = " ".join(text.split())
    if not words:
        raise ValueError("is empty")
    if not words.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return words


_LINE, _THOUGHT = AfterValidator(_on_one_line), Field(min_length=1, max_length=479)
"""The bound is 80 English words. It ends a model that would run on for ever."""


class _Answer(BaseModel):
    """The fields stand in the order in which a model had best think of them."""

    model_config = ConfigDict(strict=True)

    subtask: Annotated[str, Field(min_length=1, max_length=79), _LINE]
    subject: Annotated[str, Field(min_length=1, max_length=59), _LINE]
    gripper: Literal["open", "closed"]
    next_gripper: Literal["open", "close", "stay"]
    progress: Annotated[int, Field(ge=0, le=PERCENT)]


class _KeyFrame(_Answer):
    observation: Annotated[str, _THOUGHT, _LINE]
    image: Annotated[int, Field(ge=0)]
    bbox: Annotated[list[Annotated[int, Field(ge=0, le=1000)]], Field(min_length=4, max_length=4)]
    conclusion: Annotated[str, _THOUGHT, _LINE]


class _Between(_Answer):
    thought: Annotated[str, _THOUGHT, _LINE]


class _Verdict(BaseModel):
    """The reason comes first, so that the verdict follows from it."""

    model_config = ConfigDict(strict=True)

    reason: Annotated[str, _THOUGHT, _LINE]
    verdict: Literal["yes", "no"]


M = TypeVar("M", bound=BaseModel)
_MODELS: Mapping[Kind, type[BaseModel]] = {"key_frame": _KeyFrame, "between": _Between, "verdict": _Verdict}


@cache
def json_schema(kind: Kind, num_images: int = 1) -> dict[str, Any]:
    """JSON schema of an answer, made once and shared; `num_images` are there to choose the look's picture from."""
    fields = _MODELS[kind].model_json_schema()["properties"]
    for field in fields.values():
        del field["title"]
        if "maxLength" in field:  # what the server cuts is no sentence, so it is one character too long to be read
            field["maxLength"] += 1
    if kind == "key_frame":
        fields["image"]["maximum"] = num_images - 1
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read(text: str, *, is_key: bool, num_images: int) -> Annotation | str:
    """An answer, with a look if `is_key`, or a text that tells the model all that is wrong with it; never raises.

    A box of the right type is taken as it is: whether it makes sense is a matter of the checks.
    """
    answer = _read(_KeyFrame if is_key else _Between, text)
    if isinstance(answer, str):
        return answer
    if isinstance(answer, _KeyFrame):
        if answer.image >= num_images:
            return f"image: there are pictures 0 to {num_images - 1}"
        x1, y1, x2, y2 = answer.bbox
        thoughts, looks = (answer.observation, answer.conclusion), ((answer.image, (x1, y1, x2, y2)),)
    else:
        thoughts, looks = (answer.thought,), ()
    said = {name: getattr(answer, name) for name in ("subtask", "subject", "gripper", "next_gripper")}
    return Annotation(thoughts=thoughts, looks=looks, progress=answer.progress / PERCENT, **said)


def read_verdict(text: str) -> str:
    """Why a judge refuses, or why its answer cannot be read; empty where it says yes. Never raises."""
    verdict = _read(_Verdict, text)
    if isinstance(verdict, str):
        return UNREAD + verdict
    return "" if verdict.verdict == "yes" else f"a judge refuses it: {verdict.reason}"


def _read(model: type[M], text: str) -> M | str:
    try:
        # Not strict: in strings of bounded length xgrammar lets line breaks and other control characters through.
        fields = json.loads(_bare(text), strict=False)
    except (ValueError, RecursionError):
        return "the answer is not valid JSON"
    if not isinstance(fields, dict):
        return "the answer is not a JSON object"
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}" for p in problems)


def _bare(text: str) -> str:
    """The JSON in an answer: servers without a parser for them send thoughts before it and a code fence around it."""
    text = text.strip()
    if not text.startswith(("{", _FENCE)):  # a chat template may have put the opening mark into the prompt
        text = text.partition("</think>")[2].strip() or text
    if _FENCE in text and not text.startswith("{"):  # with a sentence before or behind it, maybe
        inside = text.partition(_FENCE)[2]
        inside = inside.rpartition(_FENCE)[0] or inside
        text = inside[max(0, inside.find("{")) :]  # behind `json`, mostly
    return text
