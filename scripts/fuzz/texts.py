"""What is fuzzed in memory: markup, tool calls, action chunks, answers and YAML, as a model or a user wrote them."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rlvla.annotation import schema
from rlvla.config import EvaluateConfig, GRPOConfig
from rlvla.config.file import ConfigError, explain, parse_yaml
from rlvla.durable.provenance import to_dict
from rlvla.policies.markup import MARKS, ToolCall, parse, parse_call, parse_text, split_text
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.tools import call_tool, load_tools
from rlvla.types import Annotation, Observation, SegmentKind
from target import refused, target

TOOLS = load_tools({"zoom_in": "rlvla.policies.thinker.tools:zoom_in"})
_CALL = b'{"name": "zoom_in", "arguments": {"image": 0, "bbox": [1, 2, 300, 400]}}'


def _text(data: bytes) -> str:
    """Any text, half surrogate pairs included: a JSON escape makes such, too."""
    return data.decode("utf-8", "surrogateescape")


@target(b"<think>a cup</think><tool>" + _CALL + b"</tool>", b"<think>go</think><act>0 1 2</act>", max_bytes=1024)
def markup(data: bytes) -> None:
    """Any text and any sequence of marks gives spans that tile it; a text is split without loss."""
    text = _text(data)
    pieces, symbols = split_text(text)
    assert "".join(pieces) == text
    for sequence in (symbols, tuple((*MARKS, None)[byte % 9] for byte in data)):
        spans = parse(sequence)
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == len(sequence)
        assert all((span.kind is SegmentKind.MALFORMED) == bool(span.error) for span in spans)
    assert len(parse_text(text)) == len(parse(symbols))


_OBSERVATION = Observation(
    images=(np.zeros((8, 8, 3), np.uint8),),
    proprio=np.zeros(1, np.float32),
    instruction="",
    zoom=lambda image, box: np.zeros((8, 8, 3), np.uint8),
)


@target(_CALL, b'{"image": 0, "bbox": [0, 0, 100, 100]}', b"\x10\x00\x10\x00\xff\x02\xff\x02", max_bytes=1200)
def calls(data: bytes) -> None:
    """A call is run, or refused with a text that a tokenizer takes; a box is then sound."""
    text = _text(data)
    boxed = json.dumps({"name": "zoom_in", "arguments": {"image": len(data) % 3 - 1, "bbox": _integers(data)}})
    for call in (text, f'{{"name": "zoom_in", "arguments": {text}}}', boxed):
        parsed = parse_call(call)
        assert isinstance(parsed, ToolCall) or parsed.startswith("error: ")
        result, box = call_tool(TOOLS, _OBSERVATION, call)
        if isinstance(result, str):
            assert result.startswith("error: ")
            assert len(result.encode()) < 500
            assert box is None
        else:
            assert result.dtype == np.uint8
            assert box is not None
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= 1000
            assert 0 <= y1 < y2 <= 1000


def _integers(data: bytes) -> list[int]:
    """Four of them from 8 bytes, mostly near the range of a box; any number of them from fewer."""
    return [value % 1200 - 100 for (value,) in struct.iter_unpack("<H", data[: len(data) // 2 * 2][:8])]


@target(b"\x10\x02\x09" + struct.pack("<9d", -1, -2, 0, 1, 2, 0, 0.5, math.nan, math.inf), max_bytes=512)
def actions(data: bytes) -> None:
    """A codec is refused or sound: it gives bins in its range for any finite chunk, and finite actions for them."""
    num_bins, chunk_length, gripper, *_ = (*data[:3], 16, 2, 0)
    floats = [value for (value,) in struct.iter_unpack("<d", data[3 : 3 + (len(data) - 3) // 8 * 8])]
    num_dims = max(1, min(len(floats) // 3, 8))
    low, high = tuple(floats[:num_dims]), tuple(floats[num_dims : 2 * num_dims])
    kind = {"num_bins": num_bins, "chunk_length": chunk_length % 4, "gripper_dim": gripper - 4 if gripper < 8 else None}
    with refused(ValueError, ""):
        codec = QuantileCodec(low=low, high=high, **kind)
        chunk = np.resize(np.array(floats[2 * num_dims :] or [0.0]), codec.chunk_shape)
        is_sound = np.isfinite(chunk).all()
        try:
            bins = codec.encode(chunk)
        except ValueError:
            assert not is_sound
            return
        assert is_sound
        assert 0 <= bins.min() <= bins.max() < num_bins
        decoded = codec.decode(bins)
        assert decoded.shape == codec.chunk_shape
        assert np.isfinite(decoded).all()
        assert ((np.float32(low) <= decoded) & (decoded <= np.float32(high))).all()


_CONFIGS = {cls: TypeAdapter(cls) for cls in (GRPOConfig, EvaluateConfig)}


@target(
    b"num_steps: 3\nlearner: {lr: 1e-6, lora: {rank: 4}}\nreward: [{fn: success, weight: 1.0}]\n",
    b"episode: {temperature: 0.6, mode: act}\nenv: {id: a, kwargs: {x: [1, {y: .nan}]}, tasks: [press]}\n",
    max_bytes=512,
)
def config(data: bytes) -> None:
    """A YAML is refused with the file's name, or gives a config that can be written down."""
    with refused(ConfigError, "run.yaml: "):
        for cls, adapter in _CONFIGS.items():
            values = parse_yaml(_text(data), "run.yaml")
            try:
                json.dumps(to_dict(adapter.validate_python(values)), allow_nan=True)
            except ValidationError as error:
                told = explain(error, cls, "run.yaml").splitlines()
                assert all(line.strip() for line in told)


_ANSWER = b'{"subtask": "reach", "subject": "cup", "gripper": "open", "next_gripper": "stay", "progress": 10, '


@target(
    _ANSWER + b'"observation": "a cup", "image": 0, "bbox": [0, 1, 500, 1000], "conclusion": "go"}',
    _ANSWER + b'"thought": "go on"}',
    max_bytes=1024,
)
def answer(data: bytes) -> None:
    """A model's answer is an annotation that a file can hold, or a complaint."""
    text = _text(data)
    for is_key in (True, False):
        read = schema.read(text, is_key=is_key, num_images=2)
        if isinstance(read, Annotation):
            assert all(thought.encode() and thought == " ".join(thought.split()) for thought in read.thoughts)
            assert 0 <= read.progress <= 1
            assert all(0 <= image < 2 and all(0 <= v <= 1000 for v in box) for image, box in read.looks)
        else:
            assert read
