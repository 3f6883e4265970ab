"""What is fuzzed in memory: markup, tool calls, action chunks, answers and YAML, as a model or a user wrote them."""

from __future__ import annotations

import json
import struct

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rlvla.annotation import schema
from rlvla.config import EvaluateConfig, GRPOConfig, to_dict
from rlvla.config.file import ConfigError, explain, parse_yaml
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.markup import MARKS, ToolCall, parse, parse_call, parse_text, split_text
from rlvla.policies.thinker.tools import call_tool, load_tools
from rlvla.types import Annotation, Observation, SegmentKind

TOOLS = load_tools({"zoom_in": "rlvla.policies.thinker.tools:zoom_in"})


def _text(data: bytes) -> str:
    """Any text, half surrogate pairs included: a JSON escape makes such, too."""
    return data.decode("utf-8", "surrogateescape")


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


def actions(data: bytes) -> None:
    """A codec is refused or sound: it gives bins in its range for any finite chunk, and finite actions for them."""
    num_bins, chunk_length, gripper, *_ = (*data[:3], 16, 2, 0)
    floats = [value for (value,) in struct.iter_unpack("<d", data[3 : 3 + (len(data) - 3) // 8 * 8])]
    num_dims = max(1, min(len(floats) // 3, 8))
    low, high = tuple(floats[:num_dims]), tuple(floats[num_dims : 2 * num_dims])
    try:
        codec = QuantileCodec(
            low=low,
            high=high,
            num_bins=num_bins,
            chunk_length=chunk_length % 4,
            gripper_dim=gripper - 4 if gripper < 8 else None,
        )
    except ValueError:
        return
    chunk = np.resize(np.array(floats[2 * num_dims :] or [0.0]), codec.chunk_shape)
    try:
        bins = codec.encode(chunk)
    except ValueError:
        assert not np.isfinite(chunk).all()
        return
    assert np.isfinite(chunk).all()
    assert bins.min() >= 0
    assert bins.max() < num_bins
    decoded = codec.decode(bins)
    assert decoded.shape == codec.chunk_shape
    assert np.isfinite(decoded).all()
    assert (decoded >= np.float32(low)).all()
    assert (decoded <= np.float32(high)).all()


_CONFIGS = {cls: TypeAdapter(cls) for cls in (GRPOConfig, EvaluateConfig)}


def config(data: bytes) -> None:
    """A YAML is refused with the file's name, or gives a config that can be written down."""
    text = _text(data)
    for cls, adapter in _CONFIGS.items():
        try:
            values = parse_yaml(text, "run.yaml")
        except ConfigError as error:
            assert str(error).startswith("run.yaml: ")
            return
        try:
            json.dumps(to_dict(adapter.validate_python(values)), allow_nan=True)
        except ValidationError as error:
            assert all(line.strip() for line in explain(error, cls, "run.yaml").splitlines())


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
