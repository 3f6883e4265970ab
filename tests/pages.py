"""What a page of ours is read with, a real browser among it, and words that try to break out of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

EVIL = """<script>document.title='owned'</script>&"><img src=x onerror="document.title='owned'">"""
BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium or chrome")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, class_: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and class_ in (attrs.get("class") or "")]


def title(source: str, folder: Path) -> str:
    """That of a page, once a real browser has run what there is to run; `folder` is for page and browser."""
    assert BROWSER is not None
    page, profile = folder / "page.html", folder / "profile"
    page.write_text(source, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)
    found = re.search("<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    return found[1]


def without_policy(source: str) -> str:
    """A page without its content security policy, so that its escaping is all that protects it."""
    return re.sub("<meta http-equiv=.*?>", "", source, flags=re.DOTALL)
