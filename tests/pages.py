"""What a page of ours is read with, a real browser among it, and words that try to break out of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

EVIL = """<script>document.title='owned'</script>&"><img src=x onerror="document.title='owned'">"""
BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium or chrome")
VOID = {"meta", "img", "br", "source"}


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


def assert_inert(source: str, folder: Path, num_evil: int) -> None:
    """Nothing of a page runs or loads, in a browser too if there is one; `EVIL` is there `num_evil` times as words."""
    page = Page(source)
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    for name, attrs in page.tags:
        assert not [key for key in attrs if key.startswith("on")]
        for key in ("src", "srcset", "href", "xlink:href"):
            address = attrs.get(key) or "#"
            assert re.match(r"#|data:image/(png|webp);base64,[\w+/=]*$", address), (name, attrs)
    assert "url(http" not in source
    assert page.text.count(EVIL) == num_evil
    policy = next(meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if BROWSER is not None:
        bare = without_policy(source)
        # Escaped, the words do nothing; the control shows that they would.
        assert [title(page, folder) == "owned" for page in (bare, unescape(bare))] == [False, True]


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
