"""The reader of answers is total: any text gives an annotation or a complaint."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rlvla.annotation.schema import json_schema, read, read_verdict
from rlvla.types import Annotation

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=12),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.text(st.sampled_from("abc .,"), min_size=1, max_size=40).filter(str.strip)


@st.composite
def answers(draw: st.DrawFn, is_key: bool, num_images: int) -> dict[str, Any]:
    """What keeps the schema."""
    found: dict[str, Any] = {}
    for name, field in json_schema(is_key=is_key, num_images=num_images)["properties"].items():
        if field["type"] == "integer":
            found[name] = draw(st.integers(field["minimum"], field["maximum"]))
        elif field["type"] == "array":
            found[name] = draw(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
        else:
            found[name] = draw(st.sampled_from(field["enum"]) if "enum" in field else WORDS)
    return found


def check(found: Annotation | str, *, is_key: bool, num_images: int) -> None:
    if isinstance(found, str):
        assert found
        return
    assert len(found.looks) == is_key
    for image, box in found.looks:
        assert 0 <= image < num_images
        assert all(type(v) is int and 0 <= v <= 1000 for v in box)
    assert found.gripper in ("open", "closed")
    assert found.next_gripper in ("open", "close", "stay")
    assert found.progress is not None
    assert 0 <= found.progress <= 1
    for text in (found.subtask, found.subject, *found.thoughts):
        assert text.encode()
        assert 0 < len(text) < 480
        assert text == " ".join(text.split())


@given(st.text(st.characters(codec=None)), st.booleans())
def test_any_text_is_read(text: str, is_key: bool) -> None:
    check(read(text, is_key=is_key, num_images=1), is_key=is_key, num_images=1)
    assert read_verdict(text)


@given(st.data(), st.booleans(), st.integers(1, 3))
def test_what_keeps_the_schema_is_an_annotation(data: st.DataObject, is_key: bool, num_images: int) -> None:
    fields = data.draw(answers(is_key, num_images))
    text = json.dumps(fields)
    found = read(text, is_key=is_key, num_images=num_images)
    assert isinstance(found, Annotation)
    assert read(f"<think>look</think>\n```json\n{text}\n```", is_key=is_key, num_images=num_images) == found
    check(found, is_key=is_key, num_images=num_images)


@given(st.data(), st.booleans(), st.integers(1, 3))
def test_any_value_in_any_field_is_read(data: st.DataObject, is_key: bool, num_images: int) -> None:
    fields = data.draw(answers(is_key, num_images))
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), unique=True)):
        fields[name] = data.draw(JSON)
    check(read(json.dumps(fields), is_key=is_key, num_images=num_images), is_key=is_key, num_images=num_images)
