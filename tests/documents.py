"""The code of our pages as a reader would copy it: fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page, in order, without the indentation of the list that they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(body) for _, body in found]


def commands(page: str) -> list[str]:
    """The lines of the page's bash blocks, continued ones joined, without comments; those of a loop for each recipe."""
    lines = re.sub(r"\\\n\s*", "", "\n".join(blocks(page, "bash"))).splitlines()
    given = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    loop = ("annotate", "sft", "grpo", "evaluate")
    expanded = [
        [re.sub(r"\$\{?r\}?", name, line) for name in loop] if "$" in line else [line] for line in given if line
    ]
    return [line for lines in expanded for line in lines]
