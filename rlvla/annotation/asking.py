"""Who is asked, and how the answers are kept: plugins, and the journal that spares a killed run its paid answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rlvla.annotation.store import Store
from rlvla.annotation.take import Annotator, Query, Reply
from rlvla.plugins import Plugin, load
from rlvla.types import Annotation

_ANNOTATION, _FIELDS = TypeAdapter(Annotation), fields(Annotation)


def load_annotator(name: str, kwargs: Mapping[str, Any]) -> Plugin:
    """The function that `annotator` names; raises PluginError saying what is wrong with it."""
    return load("annotator", name, ("decisions", "index"), ("timeline", "rng"), kwargs)


class PluginAnnotator:
    """A function of the decisions that the config names, for annotators that ask no server."""

    model = prompt_hash = ""

    def __init__(self, name: str, kwargs: Mapping[str, Any]) -> None:
        """Raises PluginError, see `load_annotator`."""
        self.name = name
        self._plugin = load_annotator(name, kwargs)

    async def annotate(self, query: Query) -> Reply:
        """See `Annotator`. Raises PluginError where the function raises, or returns no sound Annotation."""
        rng = np.random.default_rng(query.seed)
        take = query.take
        plugin = self._plugin.at(f"{take.name}, decision {query.index}")
        annotation = plugin(take.decisions, query.index, timeline=query.timeline, rng=rng)
        if not isinstance(annotation, Annotation):
            raise plugin.wrong(annotation, "an rlvla.types.Annotation")
        try:  # numbers of NumPy become Python's, lists tuples: as they are read back of a log of answers
            return Reply(annotation=_ANNOTATION.validate_python({f.name: getattr(annotation, f.name) for f in _FIELDS}))
        except ValidationError as error:
            flaws = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise plugin.wrong(annotation, f"one with other fields: {flaws}") from None


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
