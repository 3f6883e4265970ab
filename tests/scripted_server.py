"""A server that speaks OpenAI's chat completions on loopback, in threads of its own, and answers as a test wants.

with ScriptedServer(lambda asked: say(good_answer(asked))) as server:
    OpenAIConfig(base_url=server.url)
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np
from PIL import Image

MODEL = "scripted-vlm"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    count: int
    """Requests before it."""
    content: bytes
    headers: Message
    """Their names in any case."""

    @cached_property
    def body(self) -> dict[str, Any]:
        """As parsed."""
        return json.loads(self.content)

    @property
    def schema(self) -> dict[str, Any]:
        """That the answer is held to."""
        return self.body["response_format"]["json_schema"]["schema"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Of the user's message; the last is the question behind the pictures."""
        return self.body["messages"][1]["content"]

    @property
    def question(self) -> str:
        """The text behind the pictures."""
        return self.parts[-1]["text"]

    @property
    def images(self) -> list[np.ndarray]:
        """[H, W, 3] uint8 RGB, decoded."""
        urls = [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]
        return [np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server does."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    drops: bool = False
    """Close the connection instead."""
    stops_early: bool = False
    """Promise more than the body, and close the connection behind it."""


Script = Callable[[Asked], Answer]


def say(
    text: object, *, finish_reason: str = "stop", after_s: float = 0.0, usage: object = USAGE, **message: Any
) -> Answer:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    completion = {"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
    return Answer(body=json.dumps(completion).encode(), after_s=after_s)


def good_answer(asked: Asked, **changes: Any) -> str:
    """JSON that keeps the schema, and agrees with the question; `changes` replace fields."""
    facts = re.search(r"decision (\d+) of \d+, (\d+) percent of.*Gripper: (open|closed)", asked.question, re.DOTALL)
    assert facts is not None
    coming = re.search(r"(open|close)s (?:during|\d+ decision)", asked.question)
    fields: dict[str, Any] = {
        "subtask": "move the bowl",
        "subject": "bowl",
        "gripper": facts[3],
        "next_gripper": coming[1] if coming else "stay",
        "progress": int(facts[2]),
        "observation": f"The bowl is close to the gripper at moment {facts[1]}, its rim is too small to be sure of.",
        "image": 0,
        "bbox": [300, 300, 600, 600],
        "conclusion": f"The rim lies between the fingers at moment {facts[1]}, so the gripper acts.",
        "thought": f"The gripper moves towards the bowl at moment {facts[1]}.",
        "reason": "Nothing is wrong.",
        "verdict": "yes",
    }
    return json.dumps({name: fields[name] for name in asked.schema["properties"]} | changes)


def refuse(status: int, message: str = "not now", **headers: str) -> Answer:
    """An error in OpenAI's form; `retry_after_ms="20"` becomes the header `retry-after-ms`."""
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": status}}).encode()
    return Answer(body=body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def hang() -> Answer:
    """No answer for longer than any test waits."""
    return Answer(after_s=60.0)


def drop() -> Answer:
    """The connection breaks before the answer."""
    return Answer(drops=True)


def stop_early(answer: Answer) -> Answer:
    """The connection breaks in the middle of the answer."""
    return replace(answer, stops_early=True)


def in_turn(*scripts: Script) -> Script:
    """One script a request, the last for all that follow."""
    return lambda asked: scripts[min(asked.count, len(scripts) - 1)](asked)


class ScriptedServer:
    """Serves while it is entered, by a script that decides each answer; `models` are those that it lists."""

    def __init__(self, script: Script, *, models: Sequence[str] = (MODEL,)) -> None:
        self.asked: list[Asked] = []
        """All requests so far."""
        self.most_at_once = 0
        """Requests that were in flight at the same time."""
        self._script, self._num_open = script, 0
        self._listing = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in models]})
        self._lock, self._closing = threading.Lock(), threading.Event()

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                _send(self, Answer(body=outer._listing.encode()))

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                _send(self, outer._answer(content, self.headers))

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()  # whoever hangs need not be waited for
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, content: bytes, headers: Message) -> Answer:
        with self._lock:
            asked = Asked(count=len(self.asked), content=content, headers=headers)
            self.asked.append(asked)
            self._num_open += 1
            self.most_at_once = max(self.most_at_once, self._num_open)
        try:
            answer = self._script(asked)
            self._closing.wait(answer.after_s)
            return answer
        finally:
            with self._lock:
                self._num_open -= 1


def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.close_connection = answer.drops or answer.stops_early
    if answer.drops:
        return
    handler.send_response(answer.status)
    told = {"content-type": "application/json", "content-length": str(len(answer.body) + answer.stops_early)}
    for name, value in {**told, **answer.headers}.items():
        handler.send_header(name, value)
    with contextlib.suppress(ConnectionError):  # who asked has given up
        handler.end_headers()
        handler.wfile.write(answer.body)
