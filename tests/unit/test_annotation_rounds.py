"""One take, annotated: who is asked what and when, and what becomes of the answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlvla.annotation.key_frames import find_key_frames
from rlvla.annotation.rounds import Annotated, FirstAnswers, annotate_take, query_seed
from rlvla.annotation.schema import UNREAD
from rlvla.annotation.take import Query, Reply
from rlvla.config import AnnotateConfig, CheckConfig, KeyFrameConfig, OpenAIConfig
from rlvla.data.rows import DatasetError
from rlvla.types import Annotation
from tests.takes import moving

OPEN, CLOSE = -1.0, 1.0
GRIPPERS = [[OPEN], [OPEN], [CLOSE], [CLOSE], [OPEN]]
KEYS = {2, 4}
LOOK = (0, (80, 80, 180, 180))
CONFIG = AnnotateConfig(annotator="openai", checks=CheckConfig(names=("markup", "length", "subject", "progress")))


def good(query: Query, **changes: Any) -> Reply:
    """An annotation that passes, but for the changes."""
    thought = f"go on with step {query.index} of the task"
    said: dict[str, Any] = {"subject": "red block", "progress": query.index / 10, "thoughts": (thought,)}
    if query.index in KEYS:
        said |= {"thoughts": (f"look before step {query.index}", thought), "looks": (LOOK,)}
    return Reply(annotation=Annotation(**{**said, **changes}), prompt_tokens=100, completion_tokens=10)


class Scripted:
    """Answers by a function, and remembers the questions; `delay` decides which answer comes first."""

    name, model, prompt_hash = "openai", "scripted", "abc"

    def __init__(self, answer: Callable[[Query], Reply], delay: Callable[[Query], float] = lambda query: 0.0) -> None:
        self._answer, self._delay = answer, delay
        self.queries: list[Query] = []

    async def annotate(self, query: Query) -> Reply:
        self.queries.append(query)
        await asyncio.sleep(self._delay(query))
        return self._answer(query)


def run(annotator: Scripted, cfg: AnnotateConfig = CONFIG, first: FirstAnswers | None = None) -> Annotated:
    episode = moving(GRIPPERS)
    timeline = find_key_frames(episode, KeyFrameConfig())
    return asyncio.run(annotate_take(episode, timeline, annotator, cfg, first or FirstAnswers(cfg)))


def test_key_frames_come_first_and_the_others_are_told_of_them() -> None:
    annotator = Scripted(good)
    annotated = run(annotator)
    assert [query.index for query in annotator.queries] == [2, 4, 0, 1, 3]
    told = {query.index: (query.before, query.after) for query in annotator.queries}
    key = annotated.annotations
    assert told == {2: (None, None), 4: (None, None), 0: (None, key[2]), 1: (None, key[2]), 3: (key[2], key[4])}
    assert list(annotated.annotations) == [0, 1, 2, 3, 4]
    assert annotated.tally.num_dropped == 0
    assert annotated.tally.prompt_tokens == 500
    late = Scripted(good, delay=lambda query: 0.01 * (5 - query.index))
    assert run(late) == annotated  # whichever answer comes first


def test_a_bad_answer_is_asked_for_again_with_the_reason_and_at_last_dropped() -> None:
    def answer(query: Query) -> Reply:
        if query.index == 1 and query.attempt == 0:
            return good(query, thoughts=("short",))
        if query.index == 3 and query.attempt < 2:
            return Reply(annotation=None, error="the answer was cut off", prompt_tokens=7)
        return good(query, thoughts=("a </think> mark", "and on it goes")) if query.index == 4 else good(query)

    annotator = Scripted(answer)
    annotated, queries = run(annotator), annotator.queries
    assert [(q.index, q.attempt) for q in queries if q.attempt] == [(4, 1), (4, 2), (1, 1), (3, 1), (3, 2)]
    complaints = {q.index: q.complaints for q in queries if q.attempt}
    assert "1 word" in complaints[1][0]
    assert complaints[3] == ("the answer was cut off",)
    assert next(q for q in queries if q.index == 3).after is None  # nobody is told of what was dropped
    assert list(annotated.annotations) == [0, 1, 2, 3]
    first, third = annotated.provenance[1], annotated.provenance[3]
    assert (first.attempts, first.rejected) == (2, ("length",))
    assert (third.rejected, third.prompt_tokens, third.seed) == (("markup", "markup"), 114, query_seed(0, 0, 3, 2))
    assert annotated.tally.rejected == {"length": 1, "markup": 5}
    assert (annotated.tally.num_dropped, annotated.tally.dropped) == (1, {"markup": 1})


def refuse(query: Query) -> Reply:
    return Reply(annotation=None, error=f"the answer about {query.index} is not valid JSON")


def ended_by(cfg: AnnotateConfig, answer: Callable[[Query], Reply], *, is_over: bool = False) -> tuple[int, str]:
    """How many answers are asked for in two takes, and the error that ends it; empty: none."""
    annotator, first, message = Scripted(answer), FirstAnswers(cfg, is_over=is_over), ""
    try:
        for _ in range(2):
            run(annotator, cfg, first)
    except DatasetError as error:
        message = str(error)
    return len(annotator.queries), message


def test_a_run_of_which_no_first_answer_passes_ends_and_counts_the_reasons() -> None:
    """Two key frames and three others: 6 and 9 answers a take are refused, 30 in all."""

    def short(query: Query) -> Reply:
        return refuse(query) if query.index == 2 else Reply(annotation=Annotation(thoughts=("no", "no"), looks=(LOOK,)))

    num, message = ended_by(replace(CONFIG, max_refused_first=5, output=Path("out/demos")), short)
    assert num == 6  # the round in which the fifth was
    for part in (
        r"annotator 'openai': not one of the first 6 answers passed the checks \(max_refused_first is 5\)",
        r"failed: (markup 3 times, length 3 times|length 3 times, markup 3 times)\. The last one: thought 2 has 1",
        r"remove out/demos\.partial",
        r"max_refused_first: 0",
    ):
        assert re.search(part, message), message
    assert ended_by(replace(CONFIG, max_refused_first=16), refuse)[0] == 17  # in the second take
    assert ended_by(replace(CONFIG, max_refused_first=31), refuse) == (30, "")
    assert ended_by(replace(CONFIG, max_refused_first=0), refuse) == (30, "")


def test_one_answer_that_passes_is_enough() -> None:
    cfg = replace(CONFIG, max_refused_first=5)
    assert ended_by(cfg, lambda query: good(query) if query.index == 2 else refuse(query))[1] == ""
    assert ended_by(cfg, refuse, is_over=True) == (30, "")


def test_a_decision_that_contradicts_an_accepted_one_is_to_blame() -> None:
    """Key frames are accepted first; what is said between them has to fit."""

    def answer(query: Query) -> Reply:
        contradictions = {(1, 0): {"progress": 0.9}, (3, 0): {"subject": "green block"}}
        return good(query, **contradictions.get((query.index, query.attempt), {}))

    annotated = run(Scripted(answer))
    assert list(annotated.annotations) == [0, 1, 2, 3, 4]
    assert annotated.tally.rejected == {"progress": 1, "subject": 1}
    assert annotated.provenance[2].attempts == 1


JUDGED = replace(CONFIG, openai=OpenAIConfig(judge=True))


def test_a_judge_is_asked_about_what_passes_and_its_no_is_a_failed_check() -> None:
    def answer(query: Query) -> Reply:
        if query.judged is None:
            return good(query, thoughts=("short",)) if (query.index, query.attempt) == (0, 0) else good(query)
        if query.index == 3 or (query.index, query.attempt) in ((2, 0), (4, 0)):
            error = f"{UNREAD}the answer was cut off" if query.index == 2 else "a judge refuses it: wrong"
            return Reply(annotation=None, error=error, prompt_tokens=1000)
        return Reply(annotation=query.judged, prompt_tokens=1000)

    annotator = Scripted(answer)
    annotated = run(annotator, JUDGED)
    judged = [query for query in annotator.queries if query.judged is not None]
    asked = {(query.index, query.attempt): query for query in annotator.queries if query.judged is None}
    assert [*asked] == [(2, 0), (4, 0), (2, 1), (4, 1), (0, 0), (1, 0), (3, 0), (0, 1), (3, 1), (3, 2)]
    assert sorted((query.index, query.attempt) for query in judged) == sorted(asked.keys() - {(0, 0)})
    assert all((query.judged, query.complaints) == (good(query).annotation, ()) for query in judged)
    assert asked[4, 1].complaints == ("a judge refuses it: wrong",)
    assert asked[2, 1].complaints == ()  # nobody is told of a verdict that cannot be read
    assert list(annotated.annotations) == [0, 1, 2, 4]
    assert (annotated.tally.rejected, annotated.tally.dropped) == ({"length": 1, "judge": 5}, {"judge": 1})
    assert annotated.tally.prompt_tokens == 10 * 100 + 9 * 1000
    told = annotated.provenance[4]
    assert (told.attempts, told.rejected, told.seed) == (2, ("judge",), query_seed(0, 0, 4, 1))
    assert (told.checks, told.prompt_tokens) == ((*CONFIG.checks.names, "judge"), 2200)


def test_a_judge_who_refuses_everything_ends_a_run() -> None:
    def answer(query: Query) -> Reply:
        return good(query) if query.judged is None else Reply(annotation=None, error="a judge refuses it: no")

    num, message = ended_by(replace(JUDGED, max_refused_first=2), answer)
    assert num == 4
    assert "judge 2 times. The last one: a judge refuses it: no." in message


def test_seeds_differ_between_answers_and_not_between_runs() -> None:
    seeds = {query_seed(s, t, d, a) for s in range(3) for t in range(3) for d in range(3) for a in range(3)}
    assert len(seeds) == 81
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert query_seed(1, 2, 3, 0) == query_seed(1, 2, 3, 0)
