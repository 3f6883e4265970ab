"""One take, annotated: ask for the key frames, then for the decisions between them; check, ask again, or drop.

Answers of one round are asked for at once and judged together when all are there, so that the result depends on the
answers and not on the order in which they come.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

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
    rejected: list[str] = field(default_factory=list)
    problems: tuple[Problem, ...] = ()
    """Of the last reply; empty once it is accepted."""

    def judge(self, problems: tuple[Problem, ...]) -> None:
        """Take note of what is wrong with the last reply."""
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
    """Likewise."""
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
    """Ask about every decision of a take.

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
            queries = [_query(take, timeline, i, attempt, asked[i].problems, known, cfg.seed) for i in pending]
            replies = await asyncio.gather(*(annotator.annotate(query) for query in queries))
            for i, reply in zip(pending, replies, strict=True):
                asked[i].replies.append(reply)
            good = _judge(take, timeline, cfg, {i: asked[i] for i in pending}, accepted)
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


def _judge(
    take: Take, timeline: Timeline, cfg: AnnotateConfig, asked: Mapping[int, _Asked], accepted: Mapping[int, Annotation]
) -> dict[int, Annotation]:
    """Which of the last replies are acceptable, among those accepted before; notes what is wrong with the others."""
    good: dict[int, Annotation] = {}
    for i, one in asked.items():
        annotation = one.replies[-1].annotation
        if annotation is None:
            one.judge((Problem(check="markup", text=one.replies[-1].error),))
        elif problems := check_decision(annotation, take, timeline, i, cfg.checks):
            one.judge(problems)
        else:
            good[i] = annotation
    course = check_course({**accepted, **good}, take, timeline, cfg.checks, trusted=accepted)
    for i in good:
        asked[i].judge(course.get(i, ()))
    return {i: annotation for i, annotation in good.items() if i not in course}


def _provenance(take: Take, index: int, asked: _Asked, annotator: Annotator, cfg: AnnotateConfig) -> Provenance:
    attempts = len(asked.replies)
    return Provenance(
        annotator=annotator.name,
        model=annotator.model,
        prompt_hash=annotator.prompt_hash,
        seed=query_seed(cfg.seed, take.index, index, attempts - 1),
        attempts=attempts,
        rejected=tuple(asked.rejected),
        checks=cfg.checks.names,
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
