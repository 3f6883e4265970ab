"""One take, annotated: ask for the key frames, then for the others; check, have it judged, ask again, or drop.

Answers of one round are asked for at once and judged together when all are there, so that the result depends on the
answers and not on the order in which they come.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from rlvla.annotation.checks import check_decision
from rlvla.annotation.course import check_course
from rlvla.annotation.take import Annotator, Problem, Query, Reply, Take, Tally
from rlvla.config import AnnotateConfig
from rlvla.data.rows import DatasetError
from rlvla.types import Annotation, Provenance, Timeline


@dataclass(kw_only=True)
class _Asked:
    """What has come of asking about one decision so far."""

    replies: list[Reply] = field(default_factory=list)
    """Verdicts on them included."""
    num_answers: int = 0
    rejected: list[str] = field(default_factory=list)
    problems: tuple[Problem, ...] = ()
    """Of the last answer; empty once it is accepted."""

    def note(self, *problems: Problem) -> None:
        """Take note of what is wrong with the last answer."""
        self.problems = problems
        self.rejected += dict.fromkeys(problem.check for problem in problems)


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A take with what was accepted of it."""

    take: Take
    timeline: Timeline
    annotations: Mapping[int, Annotation]
    """By decision, in order."""
    provenance: Mapping[int, Provenance]
    """By decision, in order."""
    tally: Tally


class FirstAnswers:
    """Ends a run whose first answers are all refused, before more of them are paid for.

    Args:
        cfg: `max_refused_first`.
        is_over: an answer has been accepted before; nothing is counted then.
    """

    def __init__(self, cfg: AnnotateConfig, *, is_over: bool = False) -> None:
        self._cfg = cfg
        self._is_over = is_over or not cfg.max_refused_first
        self._num_refused = 0
        self._failed: Counter[str] = Counter()

    def judged(self, num_accepted: int, refused: Collection[_Asked]) -> None:
        """Count the answers of a round.

        Raises:
            DatasetError: there are too many; the message counts the reasons and names the key.
        """
        self._is_over = self._is_over or num_accepted > 0
        if self._is_over or not refused:
            return
        self._num_refused += len(refused)
        self._failed.update(name for one in refused for name in {problem.check for problem in one.problems})
        if self._num_refused >= self._cfg.max_refused_first:
            cfg, last = self._cfg, [problem.text for one in refused for problem in one.problems][-1]
            counts = ", ".join(f"{name} {count} times" for name, count in self._failed.most_common())
            raise DatasetError(
                f"annotator {cfg.annotator!r}: not one of the first {self._num_refused} answers passed the checks "
                f"(max_refused_first is {cfg.max_refused_first}). They failed: {counts}. The last one: {last}. "
                f"Mend the annotator, its server or checks.*, and remove {cfg.output}.partial, which keeps these "
                "answers; or set max_refused_first: 0 and go on"
            )


async def annotate_take(
    take: Take, timeline: Timeline, annotator: Annotator, cfg: AnnotateConfig, first: FirstAnswers
) -> Annotated:
    """Ask about every decision of a take; `annotator` also judges, where `cfg.openai.judge` has it.

    Raises:
        Exception: what the annotator or `first` raises; nothing of the take is kept then.
    """
    asked: dict[int, _Asked] = {}
    accepted: dict[int, Annotation] = {}
    keys = [i for i, is_key in enumerate(timeline.is_key) if is_key]
    between = [i for i, is_key in enumerate(timeline.is_key) if not is_key]
    for wave in (keys, between):
        asked |= {i: _Asked() for i in wave}
        known = {i: accepted[i] for i in keys if i in accepted} if wave is between else {}
        pending = wave
        for attempt in range(cfg.max_attempts):
            queries = {i: _query(take, timeline, i, attempt, asked[i].problems, known, cfg.seed) for i in pending}
            replies = await _ask(annotator, queries, asked)
            for i in pending:
                asked[i].num_answers += 1
            good = _check(take, timeline, cfg, replies, asked, accepted)
            if cfg.openai.judge:
                good = await _judge(annotator, queries, good, asked)
            accepted |= good
            pending = [i for i in pending if i not in accepted]
            first.judged(len(good), [asked[i] for i in pending])
    order = sorted(accepted)
    return Annotated(
        take=take,
        timeline=timeline,
        annotations={i: accepted[i] for i in order},
        provenance={i: _provenance(take, i, asked[i], annotator, cfg) for i in order},
        tally=_tally(asked, accepted),
    )


def _query(
    take: Take,
    timeline: Timeline,
    index: int,
    attempt: int,
    problems: Iterable[Problem],
    known: Mapping[int, Annotation],
    seed: int,
) -> Query:
    return Query(
        take=take,
        timeline=timeline,
        index=index,
        before=next((known[i] for i in sorted(known, reverse=True) if i < index), None),
        after=next((known[i] for i in sorted(known) if i > index), None),
        complaints=tuple(problem.text for problem in problems),
        attempt=attempt,
        seed=query_seed(seed, take.index, index, attempt),
    )


def query_seed(seed: int, take: int, decision: int, attempt: int) -> int:
    """A seed of its own for each answer, 0 to 2^31 - 1, the same in every run."""
    digest = hashlib.blake2b(f"{seed} {take} {decision} {attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


async def _ask(annotator: Annotator, queries: Mapping[int, Query], asked: Mapping[int, _Asked]) -> dict[int, Reply]:
    """The replies to queries, by decision."""
    replies = await asyncio.gather(*(annotator.annotate(query) for query in queries.values()))
    for i, reply in zip(queries, replies, strict=True):
        asked[i].replies.append(reply)
    return dict(zip(queries, replies, strict=True))


def _check(
    take: Take,
    timeline: Timeline,
    cfg: AnnotateConfig,
    replies: Mapping[int, Reply],
    asked: Mapping[int, _Asked],
    accepted: Mapping[int, Annotation],
) -> dict[int, Annotation]:
    """Which replies pass the checks, among those accepted before; notes what is wrong with the others."""
    good: dict[int, Annotation] = {}
    for i, reply in replies.items():
        if reply.annotation is None:
            asked[i].note(Problem(check="markup", text=reply.error))
        elif problems := check_decision(reply.annotation, take, timeline, i, cfg.checks):
            asked[i].note(*problems)
        else:
            good[i] = reply.annotation
    course = check_course({**accepted, **good}, take, timeline, cfg.checks, trusted=accepted)
    for i in good:
        asked[i].note(*course.get(i, ()))
    return {i: annotation for i, annotation in good.items() if i not in course}


async def _judge(
    judge: Annotator, queries: Mapping[int, Query], good: Mapping[int, Annotation], asked: Mapping[int, _Asked]
) -> dict[int, Annotation]:
    """Which of the answers that passed the checks are let pass; notes why the others are not."""
    questions = {i: replace(queries[i], judged=annotation, complaints=()) for i, annotation in good.items()}
    verdicts = await _ask(judge, questions, asked)
    for i, verdict in verdicts.items():
        if verdict.annotation is None:
            asked[i].note(Problem(check="judge", text=verdict.error))
    return {i: annotation for i, annotation in good.items() if verdicts[i].annotation is not None}


def _provenance(take: Take, index: int, asked: _Asked, annotator: Annotator, cfg: AnnotateConfig) -> Provenance:
    return Provenance(
        annotator=annotator.name,
        model=annotator.model,
        prompt_hash=annotator.prompt_hash,
        seed=query_seed(cfg.seed, take.index, index, asked.num_answers - 1),
        attempts=asked.num_answers,
        rejected=tuple(asked.rejected),
        checks=(*cfg.checks.names, *(("judge",) if cfg.openai.judge else ())),
        prompt_tokens=sum(reply.prompt_tokens for reply in asked.replies),
        completion_tokens=sum(reply.completion_tokens for reply in asked.replies),
    )


def _tally(asked: Mapping[int, _Asked], accepted: Mapping[int, Annotation]) -> Tally:
    lost = [one for i, one in asked.items() if i not in accepted]
    return Tally(
        num_decisions=len(asked),
        num_dropped=len(lost),
        rejected=dict(Counter(check for one in asked.values() for check in one.rejected)),
        dropped=dict(Counter(check for one in lost for check in dict.fromkeys(p.check for p in one.problems))),
        prompt_tokens=sum(reply.prompt_tokens for one in asked.values() for reply in one.replies),
        completion_tokens=sum(reply.completion_tokens for one in asked.values() for reply in one.replies),
    )
