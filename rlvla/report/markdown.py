"""Pieces of Markdown that hold whatever words: those of a model can be no table, link, code, formula or HTML."""

from __future__ import annotations

import re

_MARKS = re.compile(r"""[!"#$&*+:<=>@\[\\\]^_`{|}~]|(?<=www)\.""", re.IGNORECASE)
"""What Markdown, GitHub or Hugging Face make something of in the middle of a line."""
_NAME = re.compile(r"[\w./:+-]+", re.ASCII)


def one_line(words: str, max_length: int) -> str:
    """Words without line breaks and control characters, cut off where they are too many; not escaped."""
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return words if len(words) <= max_length else words[: max_length - 1] + "…"


def plain(words: str, max_length: int = 160) -> str:
    """Words as they are, on one line.

    Marks become character references, which Markdown takes for text and never for structure (CommonMark, section 2.5).
    """
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", one_line(words, max_length))


def code(name: str) -> str:
    """A name in code type, if it is one; else as `plain`, because nothing is escaped in code."""
    return f"`{name}`" if _NAME.fullmatch(name) else plain(name)


def fenced(content: str, language: str = "") -> str:
    """A block of code; its fence is longer than any row of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}\n"


def percent(part: float, whole: float = 1) -> str:
    """A share, short: "4.2 %"; of nothing it is 0."""
    return f"{100 * part / whole if whole else 0:.3g} %"
