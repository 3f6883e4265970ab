"""One take, annotated: ask for the key frames, then for the others; check, have it judged, ask again, or drop.

Answers of one round are asked for at once and judged together when all are there, so that the result depends on the
answers and not on the order in which they come.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlvla.annotation.checks import check_decision, with_whole_name
from rlvla.annotation.course import check_course
from rlvla.annotation.schema import UNREAD
from rlvla.annotation.take import Annotator, Problem, Query, Reply, Take, Tally
from rlvla.config import AnnotateConfig
from rlvla.data.rows import DatasetError
from rlvla.data.types import Provenance
from rlvla.types import Annotation, Timeline


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
    """What was accepted of a take."""

    annotations: Mapping[int, Annotation]
    """By decision, in order; so is `provenance`."""
    provenance: Mapping[int, Provenance]
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

    def judged(self, num_accepted: int, refused: Collection[Sequence[Problem]]) -> None:
        """Count the answers of a round.

        Raises:
            DatasetError: there are too many; the message counts the reasons and names the key.
        """
        self._is_over = self._is_over or num_accepted > 0
        if self._is_over or not refused:
            return
        self._num_refused += len(refused)
        self._failed.update(name for problems in refused for name in {problem.check for problem in problems})
        if self._num_refused >= self._cfg.max_refused_first:
            cfg, last = self._cfg, [problem.text for problems in refused for problem in problems][-1]
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
    rounds = _Rounds(take, timeline, annotator, cfg)
    for is_key in (True, False):
        rounds.known = {} if is_key else dict(sorted(rounds.accepted.items()))
        pending = [i for i, key in enumerate(timeline.is_key) if key is is_key]
        for attempt in range(cfg.max_attempts):
            left = await rounds.ask(pending, attempt)
            first.judged(len(pending) - len(left), [rounds.asked[i].problems for i in left])
            pending = left
    return rounds.result()


class _Rounds:
    """What has come of a take so far."""

    def __init__(self, take: Take, timeline: Timeline, annotator: Annotator, cfg: AnnotateConfig) -> None:
        self.asked = [_Asked() for _ in take.decisions]
        self.accepted: dict[int, Annotation] = {}
        self.known: dict[int, Annotation] = {}
        """Key frames that the others are told of, in order."""
        self._take, self._timeline, self._annotator, self._cfg = take, timeline, annotator, cfg

    async def ask(self, pending: Sequence[int], attempt: int) -> list[int]:
        """Ask about decisions once; returns those whose answer is refused."""
        queries = {i: self._query(i, attempt) for i in pending}
        await self._replies(queries.values())
        good = self._check(queries)
        if self._cfg.openai.judge:
            await self._replies([replace(queries[i], judged=said, complaints=()) for i, said in good.items()])
            for i in good:
                if error := self.asked[i].replies[-1].error:
                    self.asked[i].note(Problem(check="judge", text=error))
        self.accepted |= {i: said for i, said in good.items() if not self.asked[i].problems}
        return [i for i in pending if i not in self.accepted]

    async def _replies(self, queries: Collection[Query]) -> None:
        replies = await asyncio.gather(*(self._annotator.annotate(query) for query in queries))
        for query, reply in zip(queries, replies, strict=True):
            self.asked[query.index].replies.append(reply)

    def _query(self, index: int, attempt: int) -> Query:
        return Query(
            take=self._take,
            timeline=self._timeline,
            index=index,
            before=next((self.known[i] for i in reversed(self.known) if i < index), None),
            after=next((self.known[i] for i in self.known if i > index), None),
            complaints=tuple(p.text for p in self.asked[index].problems if not p.text.startswith(UNREAD)),
            attempt=attempt,
            seed=query_seed(self._cfg.seed, self._take.index, index, attempt),
        )

    def _check(self, queries: Mapping[int, Query]) -> dict[int, Annotation]:
        """Which of the last replies pass the checks, among those accepted before; notes what is wrong with others."""
        good, trusted, cfg = dict[int, Annotation](), self.accepted, self._cfg.checks
        for i, query in queries.items():
            asked, reply = self.asked[i], self.asked[i].replies[-1]
            asked.num_answers += 1
            if reply.annotation is None:
                asked.note(Problem(check="markup", text=reply.error))
                continue
            annotation = with_whole_name(reply.annotation, query)
            if problems := check_decision(annotation, query, cfg):
                asked.note(*problems)
            else:
                good[i] = annotation
        course = check_course({**trusted, **good}, self._timeline, cfg, trusted=trusted)
        for i in good:
            self.asked[i].note(*course.get(i, ()))
        return {i: annotation for i, annotation in good.items() if i not in course}

    def result(self) -> Annotated:
        """All that was accepted, and what it came to."""
        lost = [one for i, one in enumerate(self.asked) if i not in self.accepted]
        return Annotated(
            annotations=dict(sorted(self.accepted.items())),
            provenance={i: self._provenance(i) for i in sorted(self.accepted)},
            tally=Tally(
                num_decisions=len(self.asked),
                num_dropped=len(lost),
                rejected=dict(Counter(check for one in self.asked for check in one.rejected)),
                dropped=dict(Counter(check for one in lost for check in {p.check for p in one.problems})),
                **_tokens([reply for one in self.asked for reply in one.replies]),
            ),
        )

    def _provenance(self, index: int) -> Provenance:
        asked, cfg, annotator = self.asked[index], self._cfg, self._annotator
        return Provenance(
            annotator=annotator.name,
            model=annotator.model,
            prompt_hash=annotator.prompt_hash,
            seed=query_seed(cfg.seed, self._take.index, index, asked.num_answers - 1),
            attempts=asked.num_answers,
            rejected=tuple(asked.rejected),
            checks=(*cfg.checks.names, *(("judge",) if cfg.openai.judge else ())),
            **_tokens(asked.replies),
        )


def _tokens(replies: Collection[Reply]) -> dict[str, int]:
    return {name: sum(getattr(reply, name) for reply in replies) for name in ("prompt_tokens", "completion_tokens")}


def query_seed(seed: int, take: int, decision: int, attempt: int) -> int:
    """A seed of its own for each answer, 0 to 2^31 - 1, the same in every run."""
    digest = hashlib.blake2b(f"{seed} {take} {decision} {attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1
