"""What no byte fuzzer reaches: input that is well formed and huge, or strange in one place."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rlvla.annotation import schema
from rlvla.config import GRPOConfig
from rlvla.config.file import ConfigError, explain, parse_yaml
from rlvla.durable.provenance import to_dict
from rlvla.policies.markup import MARKS, parse_call, parse_text, print_think
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.tools import call_tool, load_tools
from rlvla.types import Annotation, Observation, SegmentKind

WIDE = "\u202e\u200b\ufeff\u0000\ud800\U0010ffff<\uff1cthink\uff1e\u0130ﬁ"
"""Right-to-left, zero-width, half a pair, full-width brackets, letters that change length with their case."""
texts = st.text(st.sampled_from([*WIDE, *"<>/thinkacol "]), max_size=40) | st.sampled_from(MARKS)
numbers = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from([0, 1, 1000, 1001, True, None, "0"])
TOOLS = load_tools({"zoom_in": "rlvla.policies.thinker.tools:zoom_in"})


@given(st.lists(texts, max_size=12).map("".join))
def test_no_look_alike_is_a_mark(text: str) -> None:
    marks = sum(text.count(mark) for mark in MARKS)
    spans = parse_text(text)
    if not marks:
        assert [span.kind for span, _ in spans] == [SegmentKind.MALFORMED]
    assert all(isinstance(inner, str) for _, inner in spans)


@given(st.lists(numbers, max_size=6), numbers, st.text(st.sampled_from([*WIDE, "a"]), max_size=60))
def test_any_box_camera_and_name_is_run_or_refused(bbox: list[Any], image: Any, name: str) -> None:
    looked: list[tuple[int, Any]] = []

    def zoom(camera: int, box: Any) -> np.ndarray:
        looked.append((camera, box))
        return np.zeros((2, 2, 3), np.uint8)

    seen = Observation(images=(np.zeros((2, 2, 3), np.uint8),), proprio=np.zeros(1), instruction="", zoom=zoom)
    for tool in ("zoom_in", name):
        call = json.dumps({"name": tool, "arguments": {"image": image, "bbox": bbox}})
        result, box = call_tool(TOOLS, seen, call)
        assert (box is None) == isinstance(result, str)
        assert not isinstance(result, str) or result.encode()
    assert all(camera == 0 and 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000 for camera, (x1, y1, x2, y2) in looked)


HUGE: dict[str, Callable[[], Any]] = {
    "a thought of a megabyte": lambda: parse_text(print_think("a" * 1_000_000) + "<act>0</act>"),
    "ten thousand calls": lambda: parse_text('<tool>{"name": "zoom_in"}</tool>' * 10_000),
    "a hundred thousand marks": lambda: parse_text("<think>" * 100_000),
    "marks that are none": lambda: parse_text("<think>" + "< /think> <tool " * 100_000),
    "a call of a megabyte": lambda: parse_call("[" * 1_000_000),
    "an answer of a megabyte": lambda: schema.read('{"thought": "' + "a" * 1_000_000, is_key=False, num_images=1),
    "an answer of a megabyte of brackets": lambda: schema.read("[" * 1_000_000, is_key=False, num_images=1),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_is_huge_takes_a_second_and_little_memory(name: str) -> None:
    tracemalloc.start()
    started = time.process_time()
    HUGE[name]()
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 5  # a hundred times what it takes here; quadratic time would be hours
    assert peak < 200_000_000


def test_a_long_thought_is_still_a_thought() -> None:
    (think, inner), (act, _) = parse_text(print_think("é" * 1_000_000) + "<act>0</act>")
    assert (think.kind, len(inner), act.kind) == (SegmentKind.THINK, 1_000_000, SegmentKind.ACT)


@pytest.mark.parametrize("text", ["a: " + "[" * 50_000, "? " * 30_000, "- " * 30_000, "a: {" * 20_000, "&a " * 20_000])
def test_a_config_that_is_nested_without_end_is_refused_soon(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"^run\.yaml: "):
        parse_yaml(text, "run.yaml")
    assert time.process_time() - started < 20


def test_a_config_cannot_grow_by_aliases() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    with pytest.raises(ConfigError, match="an alias"):
        parse_yaml(bomb, "run.yaml")


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A good config with wrong values in some places, and keys that are none."""
    values: Any = to_dict(GRPOConfig())
    for _ in range(draw(st.integers(1, 3))):
        part = values
        key = draw(st.sampled_from(sorted(part)))
        while isinstance(part[key], dict) and part[key] and draw(st.booleans()):
            part = part[key]
            key = draw(st.sampled_from(sorted(part)))
        part[draw(st.just(key) | st.text(max_size=6))] = draw(yaml_values)
    return values


@settings(max_examples=40)
@given(configs())
def test_a_config_is_read_as_it_was_written_or_refused_in_words(values: dict[str, Any]) -> None:
    try:
        read = parse_yaml(yaml.safe_dump(values, allow_unicode=True), "run.yaml")
        config = TypeAdapter(GRPOConfig).validate_python(read)
    except ConfigError as error:
        assert str(error).startswith("run.yaml: ")
    except ValidationError as error:
        lines = explain(error, GRPOConfig, "run.yaml").splitlines()
        assert lines
        assert lines[0].startswith("run.yaml: ")
    else:
        again = TypeAdapter(GRPOConfig).validate_python(to_dict(config))
        assert repr(again) == repr(config)  # also where NaN is in it


floats = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    st.lists(st.tuples(floats, floats), min_size=1, max_size=4),
    st.integers(-1, 300),
    st.integers(0, 3),
    st.data(),
)
def test_actions_are_refused_or_come_back_finite_and_in_range(
    ranges: list[tuple[float, float]], num_bins: int, chunk_length: int, data: st.DataObject
) -> None:
    low, high = zip(*ranges, strict=True)
    try:
        codec = QuantileCodec(low=low, high=high, num_bins=num_bins, chunk_length=chunk_length)
    except ValueError:
        is_sound = all(np.isfinite(pair).all() and pair[0] <= pair[1] for pair in ranges)
        assert not is_sound or not num_bins >= 2 or chunk_length < 1 or np.abs(ranges).max() > np.finfo(np.float32).max
        return
    size = chunk_length * len(low)
    chunk = np.array(data.draw(st.lists(floats, min_size=size, max_size=size))).reshape(codec.chunk_shape)
    if not np.isfinite(chunk).all():
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            codec.encode(chunk)
        return
    decoded = codec.decode(codec.encode(chunk))
    assert (np.float32(low) <= decoded).all()
    assert (decoded <= np.float32(high)).all()


FIELDS = (*schema.json_schema("key_frame")["properties"], "thought")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, yaml_values)))
def test_any_answer_is_an_annotation_or_a_complaint(answer: dict[str, Any]) -> None:
    for is_key in (True, False):
        read = schema.read(json.dumps(answer), is_key=is_key, num_images=1)
        assert isinstance(read, Annotation) or read
