"""A vision-language model behind OpenAI's chat completions (`vllm serve` and others) that says what an expert thought.

Also the judge is one: it reads an answer, and says whether it may be learned from, and why not. What is wrong with an
answer becomes a `Reply` with an error in words for the model; what is wrong with the server or with the configuration
is raised, and names the key to change.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import aiohttp
import openai

from rlvla.annotation import prompts, schema
from rlvla.annotation.take import Query, Reply
from rlvla.config import OpenAIConfig
from rlvla.pictures import to_png

T = TypeVar("T")
MAX_QUOTED_CHARS = 500
"""Of what a server says about an error."""


class AnnotatorError(ValueError):
    """The server cannot be asked in this way; the message names the config key and says what to do."""


@asynccontextmanager
async def connect(config: OpenAIConfig, *, is_judge: bool = False) -> AsyncIterator[OpenAIAnnotator]:
    """Who answers, until this is left.

    Args:
        config: of the server and of sampling.
        is_judge: ask the server of the `judge_*` keys, which defaults to the annotator's.

    Raises:
        AnnotatorError: the address is none, the key in the environment cannot be sent, or no model is configured and
            the server lists none or several.
    """
    annotator = OpenAIAnnotator(config, is_judge)
    async with annotator.client:
        annotator.model = annotator.model or await annotator.only_model()
        yield annotator


class OpenAIAnnotator:
    """A `take.Annotator`, see `connect`."""

    def __init__(self, config: OpenAIConfig, is_judge: bool) -> None:
        self._url_key, self._url = "openai.base_url", config.base_url
        self._env_key, self._env = "openai.api_key_env", config.api_key_env
        self._model_key, self.model = "openai.model", config.model
        if is_judge and config.judge_base_url:
            self._url_key, self._url = "openai.judge_base_url", config.judge_base_url
            self._env_key, self._env = "openai.judge_api_key_env", config.judge_api_key_env
        if is_judge and config.has_own_judge:
            self._model_key, self.model = "openai.judge_model", config.judge_model
        self.name = "openai"
        self.prompt_hash = prompts.prompt_hash()
        self._config = config
        self._key = _read_key(self._env, self._env_key)
        self._slots = asyncio.Semaphore(config.concurrency)
        if "@" in self._url:  # not shown, and not in a config.yaml either
            raise AnnotatorError(
                f"{self._url_key} holds a user or password, which would end up in logs and configs: put a key into the "
                f"environment variable that {self._env_key} names"
            )
        if not _is_address(self._url):
            raise AnnotatorError(f"{self._url_key} is {self._url!r}, need http://host:port/v1")
        self.client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=self._key or "none",  # the client wants one, a server on loopback does not look at it
            timeout=config.timeout_s,
            max_retries=config.max_retries,
            http_client=openai.DefaultAioHttpClient(),  # half the CPU time of the client's own transport
        )

    async def annotate(self, query: Query) -> Reply:
        """See `take.Annotator`.

        Raises:
            AnnotatorError: the server refuses the request, or does not answer after `openai.max_retries`.
        """
        async with self._slots:  # around the encoding too: only requests in flight hold encoded images
            # Untyped: of a typed body and answer the client looks at each field, which takes longer than all the rest.
            body = request(query, self.model, self._config)
            completion = await self._sent(self.client.post("/chat/completions", cast_to=object, body=body))
        return read_completion(completion, query) or self._refuse_stranger()

    async def only_model(self) -> str:
        """The one that the server lists; raises AnnotatorError where there are several, or none."""
        names: list[Any] = []
        match await self._sent(self.client.get("/models", cast_to=object)):
            case {"data": [{"id": str(name)}]}:
                return name
            case {"data": [*models]}:
                names = [model.get("id") for model in models if isinstance(model, dict)]
        shown = ", ".join(repr(name) for name in names[:20]) or "none"
        raise AnnotatorError(f"set {self._model_key} to one of those that {self._url} lists: {shown}")

    async def _sent(self, call: Awaitable[T]) -> T:
        """What the server answers."""
        try:
            answer: Any = await call
            # What the server does not call JSON comes as text.
            return json.loads(answer) if isinstance(answer, str) else answer
        except (openai.APIError, aiohttp.ClientError) as error:  # the latter where a server does not speak HTTP
            raise AnnotatorError(self._explain(error)) from None  # its request carries the key
        except (ValueError, RecursionError):  # no JSON
            self._refuse_stranger()

    def _refuse_stranger(self) -> NoReturn:
        raise AnnotatorError(
            f"what answers at {self._url} does not speak OpenAI's chat completions: "
            f"set {self._url_key} to the address of the server, usually ending in /v1"
        ) from None

    def _explain(self, error: Exception) -> str:
        """What went wrong and which key to change, without the API key."""
        cfg, status, said = self._config, getattr(error, "status_code", 0), self._quote(error)
        if not status:
            why = (
                f"gives no answer ({self._quote(error.__cause__ or error)}): is the server up, and {self._url_key} its "
                f"address? If it is only slow, raise openai.timeout_s ({cfg.timeout_s:g}) or openai.max_retries "
                f"({cfg.max_retries}), or lower openai.concurrency ({cfg.concurrency})"
            )
        elif status in (401, 403):
            why = (
                f"refuses the key ({said}): put it into the environment variable that {self._env_key} names, "
                f"{self._env or 'none yet'}, which {'is set, but to another key' if self._key else 'is not set'}; or "
                f"check {self._url_key}"
            )
        elif status == 404:
            why = (
                f"knows no such model or path ({said}): {self._model_key} is {self.model!r}, empty takes the only one "
                f"that the server lists; {self._url_key} usually ends in /v1"
            )
        elif status == 429 or status >= 500:
            advice = "lower openai.concurrency or raise openai.max_retries" if status == 429 else "see its log"
            why = f"fails, also after {cfg.max_retries} retries ({said}): {advice}"
        else:
            why = (
                f"refuses the request ({said}): {self._model_key} {self.model!r} must take images and JSON schemas, "
                f"and its context must hold a prompt and openai.max_tokens ({cfg.max_tokens})"
            )
        return f"{self._url} {why}"

    def _quote(self, error: BaseException) -> str:
        """What an error says, in short."""
        said = str(error) or type(error).__name__
        return (said.replace(self._key, "***") if self._key else said)[:MAX_QUOTED_CHARS]


def request(query: Query, model: str, config: OpenAIConfig) -> dict[str, Any]:
    """Body of the request for one answer or one verdict, JSON-able; the same query gives the same one."""
    kind, images = query.kind, query.decision.images
    content: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        content.append({"type": "text", "text": prompts.image_label(index)})
        # Its pixels are stored, not compressed: 0.2 ms for 256 x 256 where Pillow takes 3 to 6, and the server decodes
        # it in a fifth of the time.
        url = f"data:image/png;base64,{base64.b64encode(to_png(image, level=0)).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": prompts.question(query)})
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": prompts.system_prompt(kind)},
            {"role": "user", "content": content},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": kind, "strict": True, "schema": schema.json_schema(kind, len(images))},
        },
        "seed": query.seed,
        "temperature": 0.0 if kind == "verdict" else config.temperature,
        "max_tokens": config.max_tokens,
    }


def read_completion(completion: Any, query: Query) -> Reply | None:
    """What a server's chat completion, any JSON, says, or None where it is none; never raises."""
    match completion:
        case {"choices": [{"message": {**message}, **choice}, *_], **rest}:
            usage = rest.get("usage")
        case _:
            return None
    text: Any = message.get("content")
    annotation, error = query.judged, _obstacle(message, choice.get("finish_reason"))
    if query.judged is not None:
        error = f"{schema.UNREAD}{error}" if error else schema.read_verdict(text)
    elif not error:
        is_key, num_images = query.kind == "key_frame", len(query.decision.images)
        found = schema.read(text, is_key=is_key, num_images=num_images)
        annotation, error = (None, found) if isinstance(found, str) else (found, "")
    counts = [usage.get(f"{of}_tokens") if isinstance(usage, dict) else 0 for of in ("prompt", "completion")]
    prompt, answer = (count if type(count) is int else 0 for count in counts)
    return Reply(annotation=None if error else annotation, error=error, prompt_tokens=prompt, completion_tokens=answer)


def _obstacle(message: Mapping[str, Any], finish_reason: object) -> str:
    """Why there is nothing to read in an answer; empty where there is."""
    text = message.get("content")
    if finish_reason == "length":
        return "the answer was cut off, because it was too long: write shorter sentences"
    if finish_reason == "content_filter":
        return "the answer was withheld by a filter of its content: describe the robot's work soberly"
    if not isinstance(text, str) or not text.strip():
        return "the answer was a refusal" if message.get("refusal") else "the answer was empty"
    return ""


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number or too large, a bracket that is not closed
        return False


def _read_key(variable: str, key: str) -> str:
    """The API key in an environment variable, or an empty string; the message of an error does not show it."""
    if not variable:
        return ""
    if not variable.isidentifier():  # an API key itself, as likely as not
        raise AnnotatorError(
            f"{key} is not the name of an environment variable: put the key into one, such as "
            "OPENAI_API_KEY, and its name here; what stands here is written to config.yaml"
        )
    value = os.environ.get(variable, "").strip()
    if not value.isascii() or not value.isprintable():
        raise AnnotatorError(f"{key} names {variable}, whose value holds characters that no key has: set it again")
    return value
