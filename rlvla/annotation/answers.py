"""The answers of a take that is not complete yet, on the disk: what has been paid for is not asked again."""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from rlvla.annotation.take import Annotator, Query, Reply

_REPLY = TypeAdapter(Reply)


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
        self._replies: dict[tuple[int, int, bool], Reply] = {}
        content = path.read_bytes() if path.is_file() else b""
        num_good = 0
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n") or (text := verified(line[:-1])) is None:
                break
            try:
                entry = json.loads(text)
                key = entry["decision"], entry["attempt"], entry["is_judge"]
                self._replies[key] = _REPLY.validate_python(entry["reply"])
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise ValueError(f"{path}: an answer that another version wrote, or a forged one ({error})") from error
            num_good += len(line)
        if num_good < len(content):
            os.truncate(path, num_good)

    def get(self, decision: int, attempt: int, *, is_judge: bool = False) -> Reply | None:
        """The answer, or the judge's verdict on it; None where it is not known yet."""
        return self._replies.get((decision, attempt, is_judge))

    def add(self, decision: int, attempt: int, reply: Reply, *, is_judge: bool = False) -> None:
        """Append an answer; each decision and attempt has one, and one verdict."""
        key = decision, attempt, is_judge
        assert key not in self._replies, f"{self._path}: {key} is there"
        entry = {"decision": decision, "attempt": attempt, "is_judge": is_judge, "reply": _REPLY.dump_python(reply)}
        with self._path.open("ab") as file:
            file.write(checked(json.dumps(entry).encode()) + b"\n")
        self._replies[key] = reply


def checked(content: bytes) -> bytes:
    """The content with its checksum before it; `verified` undoes it."""
    return b"%08x %b" % (zlib.crc32(content), content)


def verified(content: bytes) -> bytes | None:
    """What `checked` was given; None where it is damaged."""
    body = content[9:]
    return body if content[:9] == b"%08x " % zlib.crc32(body) else None


class Journal:
    """An annotator and a judge whose answers are on the disk before they are used, and are not asked for twice.

    What has been answered of a take is in `answers`.
    """

    def __init__(self, annotator: Annotator, judge: Annotator | None, answers: Callable[[int], AnswerLog]) -> None:
        self.name, self.model, self.prompt_hash = annotator.name, annotator.model, annotator.prompt_hash
        self.num_open = 0
        """Answers that are awaited."""
        self.answered = asyncio.Condition()
        """Notified of every answer."""
        self._asked, self._answers = {False: annotator, True: judge}, answers

    async def annotate(self, query: Query) -> Reply:
        """See `Annotator`."""
        answers, is_judge = self._answers(query.take.index), query.kind == "verdict"
        known = answers.get(query.index, query.attempt, is_judge=is_judge)
        if known is not None:
            return known
        asked = self._asked[is_judge]
        assert asked is not None, "openai.judge is off"
        self.num_open += 1
        try:
            reply = await asked.annotate(query)
        finally:
            self.num_open -= 1
        answers.add(query.index, query.attempt, reply, is_judge=is_judge)
        async with self.answered:
            self.answered.notify_all()
        return reply
