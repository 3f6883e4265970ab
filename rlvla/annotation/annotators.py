"""Who is asked: a function that the config names, or a server; and who judges the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rlvla.annotation.take import Annotator, Query, Reply
from rlvla.config import AnnotateConfig
from rlvla.plugins import Plugin, load
from rlvla.types import Annotation

SERVER = "openai"
"""The annotator that is no plugin."""
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


class Annotators(NamedTuple):
    """Who is asked in a run."""

    annotator: Annotator
    judge: Annotator | None
    """None: nobody judges."""
    served: Mapping[str, str]
    """Key of the config -> model that its server has."""


@asynccontextmanager
async def open_annotators(cfg: AnnotateConfig) -> AsyncIterator[Annotators | None]:
    """Those that `cfg.annotator` and `cfg.openai` name; None where nobody is to annotate.

    Raises:
        PluginError: see `load_annotator`.
        AnnotatorError: see `openai_annotator`.
    """
    if not cfg.annotator:
        yield None
        return
    served: dict[str, str] = {}
    async with AsyncExitStack() as stack:

        async def server(key: str, *, is_judge: bool) -> Annotator:
            from rlvla.annotation.openai_annotator import OpenAIAnnotator  # only here: it loads an HTTP client

            annotator = await stack.enter_async_context(OpenAIAnnotator(cfg.openai, is_judge=is_judge))
            served[key] = annotator.model
            return annotator

        is_served, judge = cfg.annotator == SERVER, None
        if is_served:
            annotator = await server("openai.model", is_judge=False)
        else:
            annotator = PluginAnnotator(cfg.annotator, cfg.annotator_kwargs)
        if cfg.openai.judge:
            is_same = is_served and not cfg.openai.has_own_judge
            judge = annotator if is_same else await server("openai.judge_model", is_judge=True)
        yield Annotators(annotator, judge, served)
