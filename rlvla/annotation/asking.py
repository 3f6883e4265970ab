"""Who is asked, and how the answers are kept: plugins, and the journal that spares a killed run its paid answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlvla.annotation.store import Store
from rlvla.annotation.take import Annotator, Query, Reply
from rlvla.plugins import resolve


class PluginAnnotator:
    """A function of the decisions that the config names, for annotators that ask no server."""

    model = prompt_hash = ""

    def __init__(self, name: str, kwargs: Mapping[str, Any]) -> None:
        """Raises PluginError naming what does not exist."""
        self.name = name
        self._function, self._kwargs = resolve(name), kwargs

    async def annotate(self, query: Query) -> Reply:
        """See `Annotator`."""
        rng = np.random.default_rng(query.seed)
        take = query.take
        annotation = self._function(take.decisions, query.index, timeline=query.timeline, rng=rng, **self._kwargs)
        return Reply(annotation=annotation)


class Journal:
    """An annotator whose answers are on the disk before they are used, and are not asked for twice."""

    def __init__(self, annotator: Annotator, store: Store) -> None:
        self.name, self.model, self.prompt_hash = annotator.name, annotator.model, annotator.prompt_hash
        self.num_open = 0
        """Answers that are awaited."""
        self.answered = asyncio.Condition()
        """Notified of every answer."""
        self._annotator, self._store = annotator, store

    async def annotate(self, query: Query) -> Reply:
        """See `Annotator`."""
        answers = self._store.answers(query.take.index)
        known = answers.get(query.index, query.attempt)
        if known is not None:
            return known
        self.num_open += 1
        try:
            reply = await self._annotator.annotate(query)
        finally:
            self.num_open -= 1
        answers.add(query.index, query.attempt, reply)
        async with self.answered:
            self.answered.notify_all()
        return reply
