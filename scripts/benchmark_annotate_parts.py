"""What the engine's parts cost by themselves, for scripts/benchmark_annotate.py: each timed on the same takes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlvla.annotation.key_frames import find_key_frames
from rlvla.annotation.openai_annotator import OpenAIAnnotator, request
from rlvla.annotation.rounds import Annotated, FirstAnswers, annotate_take
from rlvla.annotation.run import to_demonstrations
from rlvla.annotation.sources import RecordedSource
from rlvla.annotation.store import Store
from rlvla.annotation.take import Query, Reply, Take, Tally
from rlvla.config import AnnotateConfig
from rlvla.data.rows import encode

PARTS = {
    "read": "read: decode, crop, cut into decisions",
    "checks": "key frames, rounds, checks",
    "request": "requests: prompt, pictures, JSON",
    "http": "HTTP client, parse the answers",
    "journal": "journal of answers",
    "encode": "rows: crops, PNG",
    "store": "write the takes",
    "assemble": "assemble the data set",
}
"""In the order in which a frame meets them."""


class _Recorder:
    """Asks the server, and remembers what was asked and answered."""

    def __init__(self, annotator: OpenAIAnnotator) -> None:
        self.name, self.model, self.prompt_hash = annotator.name, annotator.model, annotator.prompt_hash
        self.asked: list[tuple[Query, Reply]] = []
        self._annotator = annotator

    async def annotate(self, query: Query) -> Reply:
        """See `Annotator`."""
        reply = await self._annotator.annotate(query)
        self.asked.append((query, reply))
        return reply


class _Memory:
    """Answers at once what a recorder was answered."""

    def __init__(self, recorder: _Recorder) -> None:
        self.name, self.model, self.prompt_hash = recorder.name, recorder.model, recorder.prompt_hash
        self._replies = {(query.take.index, query.index): reply for query, reply in recorder.asked}

    async def annotate(self, query: Query) -> Reply:
        """See `Annotator`."""
        return self._replies[query.take.index, query.index]


def measure_parts(cfg: AnnotateConfig, folder: Path) -> dict[str, float]:
    """CPU milliseconds a frame of each of `PARTS`, take after take; what a run adds are its event loop and its threads.

    Args:
        cfg: of a whole run; its server must answer.
        folder: to write in; must not exist.
    """
    assert cfg.source is not None
    spent: Counter[str] = Counter()
    with Store(folder, {}) as store:
        takes = RecordedSource(cfg, cfg.source).takes(store)
        num_frames = asyncio.run(_measure(cfg, takes, store, spent))
        with _timed(spent, "assemble"):
            store.finish(robot="", fps=1.0, suites=(), complete=_nothing)
    return {name: 1000 * spent[name] / num_frames for name in PARTS}


async def _measure(cfg: AnnotateConfig, takes: Iterator[Take], store: Store, spent: Counter[str]) -> int:
    num_frames = 0
    async with OpenAIAnnotator(cfg.openai) as annotator:
        while True:
            with _timed(spent, "read"):
                take = next(takes, None)
            if take is None:
                break
            num_frames += len(take.decisions)
            recorder = _Recorder(annotator)
            timeline = find_key_frames(take, cfg.key_frames)
            await annotate_take(take, timeline, recorder, cfg, FirstAnswers(cfg))
            memory, queries = _Memory(recorder), [query for query, _ in recorder.asked]
            with _timed(spent, "checks"):
                timeline = find_key_frames(take, cfg.key_frames)
                annotated = await annotate_take(take, timeline, memory, cfg, FirstAnswers(cfg))
            with _timed(spent, "request"):
                for query in queries:
                    request(query, annotator.model, cfg.openai)
            with _timed(spent, "http"):
                await asyncio.gather(*(annotator.annotate(query) for query in queries))
            with _timed(spent, "journal"):
                log = store.answers(take.index)
                for query, reply in recorder.asked:
                    log.add(query.index, query.attempt, reply)
            _measure_writing(annotated, store, spent)
    spent["http"] -= spent["request"]  # an annotator encodes what it sends
    spent["store"] -= spent["encode"]
    return num_frames


def _measure_writing(annotated: Annotated, store: Store, spent: Counter[str]) -> None:
    with _timed(spent, "encode"):
        demonstrations = to_demonstrations(annotated)
        encode(demonstrations, "a take")
    with _timed(spent, "store"):
        store.put(annotated.take.index, to_demonstrations(annotated), annotated.tally)


@contextmanager
def _timed(spent: Counter[str], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    spent[name] += time.process_time() - start  # type: ignore[assignment]


def _nothing(folder: Path, tally: Tally) -> None:
    """No card."""
