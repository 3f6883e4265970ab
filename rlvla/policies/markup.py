"""The markup of a turn: `<think>..</think><tool>{json}</tool><result>..</result>...<think>..</think><act>..</act>`.

One parser for text and for token ids: both are first turned into a sequence of marks. It is total: any input gives
spans, or a MALFORMED one with the reason; it never raises, evaluates or backtracks (linear time).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvla.types import MIN_BOX_SIDE, Box, SegmentKind

MARKS = ("<think>", "</think>", "<tool>", "</tool>", "<result>", "</result>", "<act>", "</act>")
"""Each is one token of the vocabulary."""

_OPENERS = {"<think>": SegmentKind.THINK, "<tool>": SegmentKind.TOOL_CALL, "<act>": SegmentKind.ACT}
_CLOSERS = {"<think>": "</think>", "<tool>": "</tool>", "<act>": "</act>"}
_MARK_PATTERN = re.compile(f"({'|'.join(map(re.escape, MARKS))})")

MAX_CALL_TOKENS = 64
"""Tokens that a tool call may take beyond the thought before it."""
MAX_CALL_CHARS = 1000
"""A longer tool call is refused unread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """`symbols[start:end]` is one element of the markup, its marks included."""

    kind: SegmentKind
    start: int
    end: int
    error: str = ""
    """MALFORMED: the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A well-formed call."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One value of `episode.mode`."""

    thinks: bool = True
    """Else the turn starts behind an injected `<act>`."""
    stop: str = "</tool>"
    """The mark that ends what is asked for, beside the action's; behind a `</think>` an `<act>` is injected."""
    banned: tuple[str, ...] = ()
    """Marks that cannot be sampled."""

    @property
    def acts_on_thought(self) -> bool:
        """Whether an action follows a thought at once."""
        return self.stop == "</think>"


MODES = {
    "zoom": Mode(),
    "think": Mode(stop="</think>", banned=("<tool>",)),
    "act": Mode(thinks=False),
}
"""Value of `episode.mode` -> what it means, to who decides and to who scores."""


def parse(symbols: Sequence[str | None]) -> tuple[Span, ...]:
    """Split one generation of the policy into spans that tile it; the last is a TOOL_CALL, an ACT or MALFORMED.

    Grammar: `[<think>..</think>] (<tool>..</tool> | <act>..</act>)`, nothing between, nothing after. Of each token (or
    character run) there is its mark, or None when it is not a mark.
    """
    spans: list[Span] = []
    position = 0
    while position < len(symbols):
        span = _next_span(symbols, position)
        spans.append(span)
        if span.kind is SegmentKind.MALFORMED:
            break
        position = span.end
        if span.kind is not SegmentKind.THINK:
            if position < len(symbols):
                spans.append(_malformed(symbols, position, f"something follows the {span.kind}"))
            break
        if sum(s.kind is SegmentKind.THINK for s in spans) > 1:
            spans[-1] = _malformed(symbols, span.start, "two thoughts in a row")
            break
    if not spans or spans[-1].kind is SegmentKind.THINK:
        return (_malformed(symbols, 0, "it ends before a tool call or an action"),)
    return tuple(spans)


def _malformed(symbols: Sequence[str | None], start: int, error: str) -> Span:
    return Span(kind=SegmentKind.MALFORMED, start=start, end=len(symbols), error=error)


def _next_span(symbols: Sequence[str | None], start: int) -> Span:
    opener = symbols[start]
    if opener is None or opener not in _OPENERS:
        return _malformed(symbols, start, f"expected <think>, <tool> or <act>, got {opener or 'text'}")
    for end in range(start + 1, len(symbols)):
        mark = symbols[end]
        if mark == _CLOSERS[opener]:
            return Span(kind=_OPENERS[opener], start=start, end=end + 1)
        if mark is not None:
            return _malformed(symbols, start, f"{mark} inside {opener}")
    return _malformed(symbols, start, f"{opener} is not closed")


def split_text(text: str) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Text -> (pieces, symbols): pieces concatenate to the text, and each symbol is its piece's mark or None."""
    pieces = tuple(piece for piece in _MARK_PATTERN.split(text) if piece)
    return pieces, tuple(piece if piece in MARKS else None for piece in pieces)


def parse_text(text: str) -> tuple[tuple[Span, str], ...]:
    """The spans of a generation given as text, each with its inner text (marks removed; MALFORMED keeps all)."""
    pieces, symbols = split_text(text)
    spans = parse(symbols)
    texts = ["".join(pieces[span.start : span.end]) for span in spans]
    return tuple(
        (span, text if span.kind is SegmentKind.MALFORMED else text[text.index(">") + 1 : text.rindex("<")])
        for span, text in zip(spans, texts, strict=True)
    )


def parse_call(text: str) -> ToolCall | str:
    """The JSON inside `<tool>..</tool>` -> a call, or a text that tells the policy what is wrong with it."""
    if len(text) > MAX_CALL_CHARS:
        return "error: the call is too long"
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return "error: the call is not valid JSON"
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return "error: the call has no name"
    if not call["name"].isprintable():  # half a surrogate pair among others, which no tokenizer takes back
        return "error: the name of the call cannot be printed"
    if not isinstance(call.get("arguments"), dict):
        return "error: the call has no arguments"
    return ToolCall(name=call["name"], arguments=call["arguments"])


def parse_box(value: Any) -> Box | str:
    """A zoom box, or a text that says what is wrong with it."""
    if not isinstance(value, list) or len(value) != 4 or not all(type(v) is int for v in value):
        return "error: bbox must be four integers"
    x1, y1, x2, y2 = value
    if not all(0 <= v <= 1000 for v in value):
        return "error: bbox must lie in 0..1000"
    if x2 - x1 < MIN_BOX_SIDE or y2 - y1 < MIN_BOX_SIDE:
        return "error: bbox is empty or too small"
    return (x1, y1, x2, y2)


def print_think(thought: str) -> str:
    """`<think>thought</think>`."""
    return f"<think>{thought}</think>"


def print_zoom(image: int, box: Box) -> str:
    """The zoom call, as the policy writes it."""
    call = {"name": "zoom_in", "arguments": {"image": image, "bbox": list(box)}}
    return f"<tool>{json.dumps(call)}</tool>"
