"""What is printed is parsed to itself, and nothing is lost; that any text has spans is in `scripts/fuzz/targets.py`."""

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
