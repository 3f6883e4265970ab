"""Many takes at a time: as many as keep the server busy, and no more, so that memory does not grow with the data."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from rlvla.annotation.annotators import SERVER, PluginAnnotator, open_annotators
from rlvla.annotation.answers import Journal
from rlvla.annotation.key_frames import find_key_frames, find_key_steps
from rlvla.annotation.prompts import prompt_hash
from rlvla.annotation.rounds import Annotated, FirstAnswers, annotate_take
from rlvla.annotation.sources import TakeSource, load_expert, open_source
from rlvla.annotation.store import Store
from rlvla.annotation.take import Take, Tally
from rlvla.config import AnnotateConfig, KeyFrameConfig, OpenAIConfig
from rlvla.data.rows import DatasetError
from rlvla.data.types import Demonstration
from rlvla.durable.files import CONTENT
from rlvla.policies.markup import print_think, print_zoom
from rlvla.run import identity
from rlvla.run.preflight import check_env
from rlvla.types import Timeline

_MOVES_ANSWERS = ("model", "temperature", "max_tokens", "judge", "judge_model")
"""Keys of the server."""


def check_annotate(cfg: AnnotateConfig) -> None:
    """Source or simulator, expert and annotator are there: looked at before a simulator or a server is asked.

    Raises:
        ValueError: the message names the key.
        FileNotFoundError: `source` does not exist.
    """
    if cfg.annotator not in ("", SERVER):
        PluginAnnotator(cfg.annotator, cfg.annotator_kwargs)
    if cfg.source is None:
        load_expert(cfg)
        check_env(cfg)
    elif not cfg.source.exists():
        raise FileNotFoundError(f"source: there is no {cfg.source}")
    elif cfg.output.resolve().is_relative_to(cfg.source.resolve()):
        raise ValueError(
            f"output: {cfg.output} lies in source {cfg.source}, which has to stay as it is: name a folder beside it"
        )


def protocol(cfg: AnnotateConfig) -> dict[str, Any]:
    """What the takes of a run depend on: all but what only says where, how fast, and how it is shown."""
    unused = ("env", "expert", "expert_kwargs") if cfg.source else ("read",)
    server = tuple(f"openai.{field.name}" for field in fields(OpenAIConfig) if field.name not in _MOVES_ANSWERS)
    # An env that takes longer fails no take: no deadline holds for an expert.
    limits = ("env.deadline_s", "env.reset_deadline_s", "env.max_attempts")
    said = identity.of(cfg, ("output", "num_samples", "max_refused_first", *unused, *server, *limits))
    return said | ({f"{CONTENT}prompts": prompt_hash()} if cfg.annotator == SERVER or cfg.openai.judge else {})


async def annotate_all(cfg: AnnotateConfig, store: Store, thread: ThreadPoolExecutor) -> TakeSource:
    """Annotate every take that the store does not hold yet, and put it there; returns the source, closed.

    Takes are played or read, looked into, and stored in `thread`, one worker; meanwhile the event loop talks to the
    server. Raises the first error of the source, the annotator or the store; what is in the store by then is kept.
    """
    in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
    source = await in_thread(open_source, cfg)
    takes = source.takes(store)
    try:
        with tqdm(total=source.num_takes, desc="annotate", unit="episode", mininterval=2) as bar:
            bar.update(len(store.complete))
            if cfg.annotator:
                await _annotate(takes, cfg, store, in_thread, bar)
            else:
                while (take := await in_thread(next, takes, None)) is not None:
                    await in_thread(store.put, take.index, unannotated(take, key_steps(take, cfg)), Tally())
                    bar.update()
    except ExceptionGroup as errors:
        # The tasks of a group end together: the first error is the cause, the others are its echoes.
        raise errors.exceptions[0] from None
    finally:
        await in_thread(source.close)
    return source


async def _annotate(
    takes: Iterator[Take],
    cfg: AnnotateConfig,
    store: Store,
    in_thread: Callable[..., Awaitable[Any]],
    bar: tqdm,  # type: ignore[type-arg]
) -> None:
    """A task a take; a new take is begun when the server could do with more questions."""
    num_takes, limit = 0, cfg.openai.concurrency
    first = FirstAnswers(cfg, is_over=store.tally.num_decisions > store.tally.num_dropped)
    async with open_annotators(cfg) as (annotator, judge), asyncio.TaskGroup() as group:
        models = {"openai.model": annotator.model, "openai.judge_model": judge.model if judge else ""}
        store.hold_to({key: model for key, model in models.items() if model})
        journal = Journal(annotator, judge, store.answers)

        async def one(take: Take) -> None:
            nonlocal num_takes
            timeline = find_key_frames(take, cfg.key_frames)
            found = await annotate_take(take, timeline, journal, cfg, first)
            steps = find_key_steps(take, cfg.key_frames)
            await in_thread(lambda: store.put(take.index, to_demonstrations(take, timeline, steps, found), found.tally))
            num_takes -= 1
            async with journal.answered:
                journal.answered.notify_all()
            bar.update()

        def has_room() -> bool:
            return num_takes < limit and journal.num_open < limit

        while (take := await in_thread(next, takes, None)) is not None:
            num_takes += 1
            group.create_task(one(take))
            async with journal.answered:
                await journal.answered.wait_for(has_room)


def key_steps(take: Take, cfg: AnnotateConfig) -> Sequence[int | None]:
    """Of a take without an annotator, see `find_key_steps`.

    Where `key_frames` is as it is by default, and the gripper takes other values, there is none: only policies that act
    in chains need to know.
    """
    try:
        return find_key_steps(take, cfg.key_frames)
    except DatasetError:
        if cfg.key_frames != KeyFrameConfig():
            raise
        warnings.warn(
            "annotation.key_step is left empty: set key_frames.open_below and key_frames.closed_above to the values of "
            "the gripper where a policy is to act in chains",
            stacklevel=2,
        )
        return [None] * len(take.decisions)


def unannotated(take: Take, steps: Sequence[int | None]) -> list[Demonstration]:
    """Decisions that act without a thought."""
    return [_demonstration(take, i, texts=("",), crops=(), key_step=step) for i, step in enumerate(steps)]


def to_demonstrations(
    take: Take, timeline: Timeline, steps: Sequence[int | None], annotated: Annotated
) -> list[Demonstration]:
    """The annotated decisions, with the crops that they look at; the texts are in the markup, one a generation."""
    demonstrations = []
    for i, annotation in annotated.annotations.items():
        looks = [print_zoom(image, box) for image, box in annotation.looks]
        one = _demonstration(
            take,
            i,
            texts=tuple(print_think(t) + look for t, look in zip(annotation.thoughts, [*looks, ""], strict=True)),
            crops=tuple(np.array(take.decisions[i].zoom(image, box)) for image, box in annotation.looks),
            annotation=annotation,
            provenance=annotated.provenance[i],
            is_key_frame=timeline.is_key[i],
            key_step=steps[i],
        )
        demonstrations.append(one)
    return demonstrations


def _demonstration(take: Take, index: int, **said: Any) -> Demonstration:
    did = {name: getattr(take.decisions[index], name) for name in ("instruction", "images", "proprio", "actions")}
    return Demonstration(**did, **said, decision_index=index)
