"""A vision-language model behind OpenAI's chat completions (`vllm serve` and others) that says what an expert thought.

What is wrong with an answer becomes a `Reply` with an error in words for the model; what is wrong with the server or
with the configuration is raised, and names the key to change.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import httpx2
import numpy as np
import openai
from pydantic_core import to_json

from rlvla.annotation import prompts, schema
from rlvla.annotation.take import Query, Reply
from rlvla.config import OpenAIConfig
from rlvla.pictures import to_png
from rlvla.types import Annotation

NO_KEY = "none"
"""Sent where the environment has no key: the client wants one, a server on loopback does not look at it."""
MAX_QUOTED_CHARS = 500
"""Of what a server says about an error."""
_HOLE = "<image>"
"""Where an image goes once the rest is JSON: joining a quarter of a megabyte is quicker than escaping it."""


class AnnotatorError(ValueError):
    """The server cannot be asked in this way; the message names the config key and says what to do."""


class OpenAIAnnotator:
    """A `take.Annotator`, to be used as an async context manager, which finds out the model where none is configured.

    Args:
        config: of the server and of sampling.

    Raises:
        AnnotatorError: `openai.base_url` is no address, or the key in the environment cannot be sent.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        self.name = "openai"
        self.model = config.model
        self.prompt_hash = prompts.prompt_hash()
        self.num_retries = 0
        """Requests sent once more after 429, 5xx, a time-out or a broken connection, and answered in the end."""
        self._config = config
        self._key = _read_key(config.api_key_env)
        self._slots = asyncio.Semaphore(config.concurrency)
        if "@" in config.base_url:  # not shown, and not in a config.yaml either
            raise AnnotatorError(
                "openai.base_url holds a user or password, which would end up in logs and configs: put a key into the "
                "environment variable that openai.api_key_env names"
            )
        if not _is_address(config.base_url):
            raise AnnotatorError(f"openai.base_url is {config.base_url!r}, need http://host:port/v1")
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._key or NO_KEY,
            timeout=config.timeout_s,
            max_retries=config.max_retries,
            http_client=openai.DefaultAioHttpClient(),  # half the CPU time of the client's own transport
        )

    async def __aenter__(self) -> Self:
        """Raises AnnotatorError where no model is configured and the server lists none or several."""
        if not self.model:
            try:
                self.model = await self._only_model()
            except BaseException:
                await self.aclose()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def annotate(self, query: Query) -> Reply:
        """See `take.Annotator`.

        Raises:
            AnnotatorError: the server refuses the request, or does not answer after `openai.max_retries`.
        """
        async with self._slots:  # around the encoding too: only requests in flight hold encoded images
            # Bytes in, bytes out: the client's typed method would spend a millisecond on looking through the body.
            body = request(query, self.model, self._config)
            call = self._client.post("/chat/completions", content=body, cast_to=httpx2.Response)
            completion = await self._fetch(call)
        reply = read_completion(completion, query)
        if reply is None:
            raise AnnotatorError(self._stranger())
        return reply

    async def _only_model(self) -> str:
        listing = await self._fetch(self._client.get("/models", cast_to=httpx2.Response))
        models = listing.get("data")
        names = [model.get("id") for model in models if isinstance(model, dict)] if isinstance(models, list) else []
        if len(names) == 1 and isinstance(names[0], str):
            return names[0]
        shown = ", ".join(repr(name) for name in names[:20]) or "none"
        raise AnnotatorError(f"set openai.model to one of those that {self._config.base_url} lists: {shown}")

    async def _fetch(self, call: Awaitable[httpx2.Response]) -> Mapping[str, Any]:
        """The JSON object that the server answers."""
        try:
            response = await call
        except (openai.APIError, aiohttp.ClientError) as error:  # the latter where a server does not speak HTTP
            raise AnnotatorError(self._explain(error)) from None  # its request carries the key
        self.num_retries += int(response.request.headers["x-stainless-retry-count"])
        try:
            found = json.loads(response.content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise AnnotatorError(self._stranger())
        return found

    def _stranger(self) -> str:
        return (
            f"what answers at {self._config.base_url} does not speak OpenAI's chat completions: "
            "set openai.base_url to the address of the server, usually ending in /v1"
        )

    def _explain(self, error: Exception) -> str:
        """What went wrong and which key to change, without the API key."""
        cfg = self._config
        if not isinstance(error, openai.APIStatusError):
            return (
                f"{cfg.base_url} gives no answer ({self._quote(error.__cause__ or error)}): is the server up, and "
                f"openai.base_url its address? If it is only slow, raise openai.timeout_s ({cfg.timeout_s:g}) or "
                f"openai.max_retries ({cfg.max_retries}), or lower openai.concurrency ({cfg.concurrency})"
            )
        status: int = error.status_code
        said = self._quote(error)
        if status in (401, 403):
            state = "is set, but to another key" if self._key else "is not set"
            return (
                f"{cfg.base_url} refuses the key ({said}): put it into the environment variable that "
                f"openai.api_key_env names, {cfg.api_key_env}, which {state}; or check openai.base_url"
            )
        if status == 404:
            return (
                f"{cfg.base_url} knows no such model or path ({said}): openai.model is {self.model!r}, empty takes the "
                "only one that the server lists; openai.base_url usually ends in /v1"
            )
        if status == 429:
            return (
                f"{cfg.base_url} is still overloaded after {cfg.max_retries} retries ({said}): "
                "lower openai.concurrency or raise openai.max_retries"
            )
        if status >= 500:
            return f"{cfg.base_url} fails, also after {cfg.max_retries} retries ({said}): see the log of the server"
        return (
            f"{cfg.base_url} refuses the request ({said}): openai.model {self.model!r} must take images and JSON "
            f"schemas, and its context must hold a prompt and openai.max_tokens ({cfg.max_tokens})"
        )

    def _quote(self, error: BaseException) -> str:
        """What an error says, in short."""
        said = str(error) or type(error).__name__
        return (said.replace(self._key, "***") if self._key else said)[:MAX_QUOTED_CHARS]


def request(query: Query, model: str, config: OpenAIConfig) -> bytes:
    """Body of the request for one answer, JSON; the same query gives the same bytes."""
    images = query.take.decisions[query.index].images
    is_key = query.timeline.is_key[query.index]
    content: list[dict[str, Any]] = []
    for index in range(len(images)):
        content.append({"type": "text", "text": prompts.image_label(index)})
        content.append({"type": "image_url", "image_url": {"url": _HOLE}})
    content.append({"type": "text", "text": prompts.question(query)})
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": prompts.system_prompt(is_key=is_key)},
            {"role": "user", "content": content},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "key_frame" if is_key else "between",
                "strict": True,
                "schema": schema.json_schema(is_key=is_key, num_images=len(images)),
            },
        },
        "seed": query.seed,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
    }
    first, *rest = to_json(body).split(_HOLE.encode())
    assert len(rest) == len(images), "prompts.quote leaves no < in anything that others wrote"
    return b"".join(
        (first, *(part for image, text in zip(images, rest, strict=True) for part in (data_url(image), text)))
    )


def data_url(image: np.ndarray) -> bytes:
    """[H, W, 3] uint8 RGB -> a data URL of a PNG, hence without loss.

    Its pixels are stored, not compressed: 0.2 ms for 256 x 256 where Pillow takes 3 to 6, and the server decodes it in
    a fifth of the time.
    """
    return b"data:image/png;base64," + base64.b64encode(to_png(image, level=0))


def read_completion(completion: Mapping[str, Any], query: Query) -> Reply | None:
    """What a server's chat completion says, or None where it is no chat completion; never raises."""
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    found = _read_message(message, choice.get("finish_reason"), query)
    usage = completion.get("usage")
    return Reply(
        annotation=None if isinstance(found, str) else found,
        error=found if isinstance(found, str) else "",
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _read_message(message: Mapping[str, Any], finish_reason: object, query: Query) -> Annotation | str:
    if finish_reason == "length":
        return "the answer was cut off, because it was too long: write shorter sentences"
    if finish_reason == "content_filter":
        return "the answer was withheld by a filter of its content: describe the robot's work soberly"
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        return "the answer was a refusal" if message.get("refusal") else "the answer was empty"
    is_key = query.timeline.is_key[query.index]
    return schema.read(text, is_key=is_key, num_images=len(query.take.decisions[query.index].images))


def _count(usage: object, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int else 0


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number or too large, a bracket that is not closed
        return False


def _read_key(variable: str) -> str:
    """The key in an environment variable, or an empty string; the message of an error does not show it."""
    if not variable.isidentifier():  # a key itself, as likely as not
        raise AnnotatorError(
            "openai.api_key_env is not the name of an environment variable: put the key into one, such as "
            "OPENAI_API_KEY, and its name here; what stands here is written to config.yaml"
        )
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise AnnotatorError(
            f"openai.api_key_env names {variable}, whose value holds characters that no key has: set it again"
        )
    return key
