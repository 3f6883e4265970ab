"""A server that speaks OpenAI's chat completions on loopback, in a thread of its own, and answers as a test wants.

with ScriptedServer(lambda asked: say(good_answer(asked))) as server:
    OpenAIConfig(base_url=server.url)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
from aiohttp import web
from PIL import Image

MODEL = "scripted-vlm"
HANG_S = 60.0
"""Longer than any test waits."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    count: int
    """Requests before it."""
    content: bytes
    headers: Mapping[str, str]

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
        """Of the user's message."""
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


def say(text: str | None, *, finish_reason: str = "stop", after_s: float = 0.0, **message: Any) -> Answer:
    """A chat completion of 11 prompt tokens and 7 of its own."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    completion = {"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
    return Answer(body=json.dumps(completion).encode(), after_s=after_s)


def good_answer(asked: Asked, **changes: Any) -> str:
    """JSON that keeps the schema, and agrees with the question as far as it tells; `changes` replace fields."""
    state = re.search(r"Gripper: (open|closed)", asked.question)
    coming = re.search(r"(closes|opens) (?:during|\d+ decision)", asked.question)
    position = re.search(r"decision (\d+) of \d+, (\d+) percent of", asked.question)
    number, progress = position.groups() if position else ("1", "0")
    fields: dict[str, Any] = {
        "subtask": "move the bowl",
        "subject": "bowl",
        "gripper": state[1] if state else "open",
        "next_gripper": {"closes": "close", "opens": "open", "": "stay"}[coming[1] if coming else ""],
        "progress": int(progress),
        "observation": f"The bowl is close to the gripper at moment {number}, and its rim is too small to be sure of.",
        "image": 0,
        "bbox": [300, 300, 600, 600],
        "conclusion": f"The rim lies between the fingers at moment {number}, so the gripper acts.",
        "thought": f"The gripper moves towards the bowl at moment {number}.",
        "reason": "Nothing is wrong.",
        "verdict": "yes",
    }
    fields = {name: fields[name] for name in asked.schema["properties"]}
    return json.dumps({**fields, **changes})


def refuse(status: int, message: str = "not now", **headers: str) -> Answer:
    """An error in OpenAI's form; `retry_after_ms="20"` becomes the header `retry-after-ms`."""
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": status}}).encode()
    return Answer(body=body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def hang() -> Answer:
    """No answer."""
    return Answer(after_s=HANG_S)


def drop() -> Answer:
    """The connection breaks before the answer."""
    return Answer(drops=True)


def stop_early(answer: Answer) -> Answer:
    """The connection breaks in the middle of the answer."""
    return Answer(body=answer.body, stops_early=True)


def in_turn(*scripts: Script) -> Script:
    """One script a request, the last for all that follow."""
    return lambda asked: scripts[min(asked.count, len(scripts) - 1)](asked)


class ScriptedServer:
    """Serves while it is entered.

    Args:
        script: decides each answer.
        models: that it lists.
    """

    def __init__(self, script: Script, *, models: Sequence[str] = (MODEL,)) -> None:
        self.asked: list[Asked] = []
        """All requests so far."""
        self.most_at_once = 0
        """Requests that were in flight at the same time."""
        self.url = ""
        self._script, self._models = script, models
        self._num_open = 0
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._await(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._await(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=20)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._list)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _stop(self) -> None:
        self._closing.set()  # whoever hangs need not be waited for
        await self._runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self._models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(count=len(self.asked), content=await request.read(), headers=dict(request.headers))
        self.asked.append(asked)
        self._num_open += 1
        self.most_at_once = max(self.most_at_once, self._num_open)
        try:
            return await self._answer(request, self._script(asked))
        finally:
            self._num_open -= 1

    async def _answer(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        if answer.after_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), answer.after_s)
        if answer.drops:
            assert request.transport is not None
            request.transport.abort()
        if not answer.stops_early:
            headers = {"content-type": "application/json", **answer.headers}
            return web.Response(body=answer.body, status=answer.status, headers=headers)
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.content_length = len(answer.body) + 1
        await response.prepare(request)
        await response.write(answer.body)
        assert request.transport is not None
        request.transport.close()
        return response
