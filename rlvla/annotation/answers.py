"""The answers of a take that is not complete yet, on the disk: what has been paid for is not asked again."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlvla.annotation.take import Reply
from rlvla.types import Annotation


class AnswerLog:
    """A line an answer: the CRC-32 of the rest in hexadecimal, a space, JSON.

    A line is with the kernel before `add` returns, so that `kill -9` takes at most the answer that is being added.
    Nothing waits for the disk: that would cost milliseconds an answer, and a power failure takes but the answers of
    the last half minute, which are asked for again. From the first line on that does not agree with its checksum,
    torn or flipped, the file is cut off when it is opened.

    Args:
        path: the file; made with the first answer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[tuple[int, int], Reply] = {}
        content = path.read_bytes() if path.is_file() else b""
        num_good = 0
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n") or (text := verified(line[:-1])) is None:
                break
            try:
                entry = json.loads(text)
                self._replies[entry["decision"], entry["attempt"]] = _reply(entry["reply"])
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path}: an answer that another version wrote, or a forged one ({error})") from error
            num_good += len(line)
        if num_good < len(content):
            os.truncate(path, num_good)

    def get(self, decision: int, attempt: int) -> Reply | None:
        """The answer, None where it is not known yet."""
        return self._replies.get((decision, attempt))

    def add(self, decision: int, attempt: int, reply: Reply) -> None:
        """Append an answer; each decision and attempt has one."""
        assert (decision, attempt) not in self._replies, f"{self._path}: {decision}, {attempt} is there"
        entry = {"decision": decision, "attempt": attempt, "reply": reply}
        with self._path.open("ab") as file:
            file.write(checked(json.dumps(entry, default=_fields).encode()) + b"\n")
        self._replies[decision, attempt] = reply


def checked(content: bytes) -> bytes:
    """The content with its checksum before it; `verified` undoes it."""
    return b"%08x %b" % (zlib.crc32(content), content)


def verified(content: bytes) -> bytes | None:
    """What `checked` was given; None where it is damaged."""
    body = content[9:]
    return body if content[:9] == b"%08x " % zlib.crc32(body) else None


def _fields(record: Any) -> dict[str, Any]:
    """What JSON is told of a dataclass; `asdict` would copy it, which takes longer than all the rest."""
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _reply(entry: dict[str, Any]) -> Reply:
    return Reply(**{**entry, "annotation": _annotation(entry["annotation"])})


def _annotation(entry: dict[str, Any] | None) -> Annotation | None:
    if entry is None:
        return None
    looks = tuple((image, (x1, y1, x2, y2)) for image, (x1, y1, x2, y2) in entry["looks"])
    return Annotation(**{**entry, "thoughts": tuple(entry["thoughts"]), "looks": looks})
