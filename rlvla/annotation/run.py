"""Many takes at a time: as many as keep the server busy, and no more, so that memory does not grow with the data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from rlvla.annotation.annotators import SERVER, open_annotators
from rlvla.annotation.answers import Journal
from rlvla.annotation.key_frames import find_key_frames
from rlvla.annotation.prompts import prompt_hash
from rlvla.annotation.rounds import Annotated, FirstAnswers, annotate_take
from rlvla.annotation.sources import TakeSource, open_source
from rlvla.annotation.store import Store
from rlvla.annotation.take import Take, Tally
from rlvla.config import AnnotateConfig, OpenAIConfig
from rlvla.data.types import Demonstration
from rlvla.durable.files import CONTENT
from rlvla.policies.markup import print_think, print_zoom
from rlvla.run import identity
from rlvla.types import Annotation

T = TypeVar("T")
_MOVES_ANSWERS = ("model", "temperature", "max_tokens", "judge", "judge_model")
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
        async with open_annotators(cfg) as asked:
            journal = None
            if asked is not None:
                store.hold_to(asked.served)
                journal = Journal(asked.annotator, asked.judge, store.answers)
            await _Run(cfg, store, thread, journal).over(source)
    except ExceptionGroup as errors:
        # The tasks of a group end together: the first error is the cause, the others are its echoes.
        raise errors.exceptions[0] from None
    finally:
        await loop.run_in_executor(thread, source.close)
    return source


def protocol(cfg: AnnotateConfig) -> dict[str, Any]:
    """What the takes of a run depend on: all but what only says where, how fast, and how it is shown."""
    unused = ("env", "expert", "expert_kwargs") if cfg.source else ("read",)
    server = tuple(f"openai.{field.name}" for field in fields(OpenAIConfig) if field.name not in _MOVES_ANSWERS)
    # An env that takes longer fails no take: no deadline holds for an expert.
    limits = ("env.deadline_s", "env.reset_deadline_s", "env.max_attempts")
    said = identity.of(cfg, ("output", "num_samples", "max_refused_first", *unused, *server, *limits))
    return said | ({f"{CONTENT}prompts": prompt_hash()} if cfg.annotator == SERVER or cfg.openai.judge else {})


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
                while (take := await self._in_thread(lambda: next(takes, None))) is not None:
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

        def keep() -> None:
            demonstrations = unannotated(take) if annotated is None else to_demonstrations(annotated)
            self._store.put(take.index, demonstrations, Tally() if annotated is None else annotated.tally)

        await self._in_thread(keep)
        self._num_takes -= 1
        async with self._has_room:
            self._has_room.notify_all()
        bar.update()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def unannotated(take: Take) -> list[Demonstration]:
    """Decisions that act without a thought."""
    return [_demonstration(take, i, texts=("",), crops=()) for i in range(len(take.decisions))]


def to_demonstrations(annotated: Annotated) -> list[Demonstration]:
    """The annotated decisions, with the crops that they look at."""
    return [
        _demonstration(
            annotated.take,
            i,
            texts=texts(annotation),
            crops=tuple(np.array(annotated.take.decisions[i].zoom(image, box)) for image, box in annotation.looks),
            annotation=annotation,
            provenance=annotated.provenance[i],
            is_key_frame=annotated.timeline.is_key[i],
        )
        for i, annotation in annotated.annotations.items()
    ]


def _demonstration(take: Take, index: int, **said: Any) -> Demonstration:
    did = {name: getattr(take.decisions[index], name) for name in ("instruction", "images", "proprio", "actions")}
    return Demonstration(**did, **said, decision_index=index)


def texts(annotation: Annotation) -> tuple[str, ...]:
    """An annotation in the markup, one text a generation of the policy."""
    looks = [print_zoom(image, box) for image, box in annotation.looks]
    return tuple(print_think(thought) + look for thought, look in zip(annotation.thoughts, [*looks, ""], strict=True))
