"""Many takes at a time: as many as keep the server busy, and no more, so that memory does not grow with the data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from rlvla.annotation.asking import Journal, PluginAnnotator
from rlvla.annotation.key_frames import find_key_frames
from rlvla.annotation.prompts import prompt_hash
from rlvla.annotation.rounds import Annotated, FirstAnswers, annotate_take
from rlvla.annotation.sources import TakeSource, open_source
from rlvla.annotation.store import Store
from rlvla.annotation.take import Annotator, Take, Tally
from rlvla.config import AnnotateConfig, OpenAIConfig
from rlvla.durable.files import CONTENT
from rlvla.policies.markup import print_think, print_zoom
from rlvla.run import identity
from rlvla.types import Annotation, Decision, Demonstration

T = TypeVar("T")
SERVER = "openai"
"""The annotator that is no plugin."""
_MOVES_ANSWERS = ("model", "temperature", "max_tokens")
"""Keys of the server."""


async def annotate_all(cfg: AnnotateConfig, store: Store, thread: ThreadPoolExecutor) -> TakeSource:
    """Annotate every take that the store does not hold yet, and put it there.

    Args:
        cfg: what to annotate, and how.
        store: of the same config.
        thread: one worker, in which takes are played or read, looked into, and stored; meanwhile the event loop talks
            to the server.

    Returns:
        The source, closed.

    Raises:
        Exception: the first error of the source, the annotator or the store; what is in the store by then is kept.
    """
    loop = asyncio.get_running_loop()
    source = await loop.run_in_executor(thread, open_source, cfg)
    try:
        async with _annotator(cfg) as annotator:
            if cfg.annotator == SERVER and annotator:
                store.hold_to(annotator.model)
            await _Run(cfg, store, thread, Journal(annotator, store) if annotator else None).over(source)
    except ExceptionGroup as errors:
        # The tasks of a group end together: the first error is the cause, the others are its echoes.
        raise errors.exceptions[0] from None
    finally:
        await loop.run_in_executor(thread, source.close)
    return source


@asynccontextmanager
async def _annotator(cfg: AnnotateConfig) -> AsyncIterator[Annotator | None]:
    """The one that `cfg.annotator` names; None where nobody is to annotate."""
    if cfg.annotator == SERVER:
        # Only here: it loads an HTTP client.
        from rlvla.annotation.openai_annotator import OpenAIAnnotator

        async with OpenAIAnnotator(cfg.openai) as annotator:
            yield annotator
    else:
        yield PluginAnnotator(cfg.annotator, cfg.annotator_kwargs) if cfg.annotator else None


def protocol(cfg: AnnotateConfig) -> dict[str, Any]:
    """What the takes of a run depend on: all but what only says where, how fast, and how it is shown."""
    unused = ("env", "expert", "expert_kwargs") if cfg.source else ("read",)
    server = tuple(f"openai.{field.name}" for field in fields(OpenAIConfig) if field.name not in _MOVES_ANSWERS)
    # An env that takes longer fails no take: no deadline holds for an expert.
    limits = ("env.deadline_s", "env.reset_deadline_s", "env.max_attempts")
    said = identity.of(cfg, ("output", "num_samples", "max_refused_first", *unused, *server, *limits))
    return said | ({f"{CONTENT}prompts": prompt_hash()} if cfg.annotator == SERVER else {})


class _Run:
    """A task a take; a new take is begun when the server could do with more questions."""

    def __init__(self, cfg: AnnotateConfig, store: Store, thread: ThreadPoolExecutor, journal: Journal | None) -> None:
        self._cfg, self._store, self._thread, self._journal = cfg, store, thread, journal
        self._first = FirstAnswers(cfg, is_over=store.tally.num_decisions > store.tally.num_dropped)
        self._num_takes = 0
        """In work."""
        self._has_room = journal.answered if journal else asyncio.Condition()

    async def over(self, source: TakeSource) -> None:
        """Annotate what the source has."""
        takes = source.takes(self._store)
        with tqdm(total=source.num_takes, desc="annotate", unit="episode", mininterval=2) as bar:
            bar.update(self._store.num_takes)
            async with asyncio.TaskGroup() as group:
                while (take := await self._in_thread(_next, takes)) is not None:
                    self._num_takes += 1
                    group.create_task(self._one(take, bar))
                    async with self._has_room:
                        await self._has_room.wait_for(self._is_idle)

    def _is_idle(self) -> bool:
        limit = self._cfg.openai.concurrency
        return self._num_takes < limit and (self._journal is None or self._journal.num_open < limit)

    async def _one(self, take: Take, bar: tqdm) -> None:  # type: ignore[type-arg]
        annotated = None
        if self._journal is not None:
            timeline = find_key_frames(take, self._cfg.key_frames)
            annotated = await annotate_take(take, timeline, self._journal, self._cfg, self._first)
        await self._in_thread(_keep, self._store, take, annotated)
        self._num_takes -= 1
        async with self._has_room:
            self._has_room.notify_all()
        bar.update()

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _next(takes: Iterator[Take]) -> Take | None:
    return next(takes, None)


def _keep(store: Store, take: Take, annotated: Annotated | None) -> None:
    demonstrations = unannotated(take) if annotated is None else to_demonstrations(annotated)
    store.put(take.index, demonstrations, Tally() if annotated is None else annotated.tally)


def unannotated(take: Take) -> list[Demonstration]:
    """Decisions that act without a thought."""
    return [_demonstration(decision, i) for i, decision in enumerate(take.decisions)]


def to_demonstrations(annotated: Annotated) -> list[Demonstration]:
    """The annotated decisions, with the crops that they look at."""
    demonstrations = []
    carried = ""
    for i, annotation in annotated.annotations.items():
        decision = annotated.take.decisions[i]
        demonstrations.append(
            replace(
                _demonstration(decision, i),
                texts=texts(annotation),
                crops=tuple(np.array(decision.zoom(image, box)) for image, box in annotation.looks),
                carried_thought=carried,
                annotation=annotation,
                provenance=annotated.provenance[i],
                is_key_frame=annotated.timeline.is_key[i],
            )
        )
        carried = annotation.thoughts[-1]
    return demonstrations


def _demonstration(decision: Decision, index: int) -> Demonstration:
    return Demonstration(
        instruction=decision.instruction,
        images=decision.images,
        proprio=decision.proprio,
        texts=("",),
        crops=(),
        actions=decision.actions,
        decision_index=index,
    )


def texts(annotation: Annotation) -> tuple[str, ...]:
    """An annotation in the markup, one text a generation of the policy."""
    looks = [print_zoom(image, box) for image, box in annotation.looks]
    return tuple(print_think(thought) + look for thought, look in zip(annotation.thoughts, [*looks, ""], strict=True))
