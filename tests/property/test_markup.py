import json
import time

from hypothesis import given
from hypothesis import strategies as st

from rlvla.policies.markup import (
    MARKS,
    ToolCall,
    parse,
    parse_box,
    parse_call,
    parse_text,
    print_think,
    print_zoom,
    split_text,
)
from rlvla.types import MIN_BOX_SIDE, Box, SegmentKind

plain_text = st.text().filter(lambda text: not any(mark in text for mark in MARKS))
mixed_text = st.lists(st.sampled_from(MARKS) | st.text(max_size=5)).map("".join)
symbol_lists = st.lists(st.sampled_from([*MARKS, None]), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x1, y1 = (draw(st.integers(0, 1000 - MIN_BOX_SIDE)) for _ in range(2))
    return x1, y1, draw(st.integers(x1 + MIN_BOX_SIDE, 1000)), draw(st.integers(y1 + MIN_BOX_SIDE, 1000))


@given(plain_text, st.integers(0, 9), boxes())
def test_a_printed_look_parses_to_itself(thought: str, image: int, box: Box) -> None:
    (think, inner), (call, text) = parse_text(print_think(thought) + print_zoom(image, box))
    assert (think.kind, inner, call.kind) == (SegmentKind.THINK, thought, SegmentKind.TOOL_CALL)
    parsed = parse_call(text)
    assert isinstance(parsed, ToolCall)
    assert (parsed.name, parsed.arguments["image"]) == ("zoom_in", image)
    assert parse_box(parsed.arguments["bbox"]) == box


@given(plain_text, plain_text)
def test_a_printed_action_parses_to_itself(thought: str, actions: str) -> None:
    spans = parse_text(f"{print_think(thought)}<act>{actions}</act>")
    assert [(span.kind, text) for span, text in spans] == [
        (SegmentKind.THINK, thought),
        (SegmentKind.ACT, actions),
    ]


@given(symbol_lists)
def test_any_sequence_of_marks_gives_spans_that_tile_it(symbols: list[str | None]) -> None:
    spans = parse(symbols)
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == len(symbols)
    assert spans[-1].kind in (SegmentKind.TOOL_CALL, SegmentKind.ACT, SegmentKind.MALFORMED)
    assert all((span.kind is SegmentKind.MALFORMED) == bool(span.error) for span in spans)
    assert all(span.kind is SegmentKind.THINK for span in spans[:-1])


@given(mixed_text)
def test_any_text_is_split_without_loss_and_parsed(text: str) -> None:
    pieces, symbols = split_text(text)
    assert "".join(pieces) == text
    assert all(symbol is None or symbol == piece for piece, symbol in zip(pieces, symbols, strict=True))
    spans = parse_text(text)
    assert [span for span, _ in spans] == list(parse(symbols))
    for span, inner in spans:
        whole = "".join(pieces[span.start : span.end])
        marks = MARKS[{SegmentKind.THINK: 0, SegmentKind.TOOL_CALL: 2, SegmentKind.ACT: 6}.get(span.kind, 0) :][:2]
        assert whole == (inner if span.kind is SegmentKind.MALFORMED else f"{marks[0]}{inner}{marks[1]}")


@given(st.text() | json_values.map(json.dumps))
def test_any_call_is_accepted_or_refused_with_a_reason(text: str) -> None:
    call = parse_call(text)
    assert isinstance(call, ToolCall) or call.startswith("error: ")


@given(json_values)
def test_any_value_is_a_sound_box_or_refused_with_a_reason(value: object) -> None:
    box = parse_box(value)
    assert isinstance(box, tuple) or box.startswith("error: ")


def test_time_grows_linearly() -> None:
    def seconds(length: int) -> float:
        text = "<think>" + "< /think> <tool " * length
        started = time.process_time()
        parse_text(text)
        parse([None] * length + ["<act>"] * length)
        parse(["<think>", *[None] * length])
        return time.process_time() - started

    # Ten times the length takes ten times as long; a quadratic parser would take a hundred times.
    assert min(seconds(200_000) for _ in range(3)) < 40 * min(seconds(20_000) for _ in range(3)) + 0.01
