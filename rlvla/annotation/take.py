"""What flows through the engine: a take of decisions, its timeline, a query about one decision, the reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

from rlvla.config import CheckName
from rlvla.types import Annotation, Decision, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """One success of an expert, as decisions that nobody has annotated."""

    index: int
    """Among the takes of a run; with the run's seed it seeds whatever is drawn."""
    name: str
    """File and episode, or suite, task and initial state; errors begin with it."""
    decisions: tuple[Decision, ...]
    """At least one."""
    stride: int
    """Env steps from one decision to the next; the first `stride` actions of a decision are executed."""
    fps: float
    """Env steps a second."""


Kind = Literal["key_frame", "between", "verdict"]
"""Of an answer: about a key frame, about a frame between two of them, or a judge's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Please annotate one decision."""

    take: Take
    timeline: Timeline
    index: int
    """Of the decision."""
    before: Annotation | None = None
    """Of the nearest annotated key frame before; None at a key frame, or where there is none."""
    after: Annotation | None = None
    """Of the nearest one behind."""
    complaints: tuple[str, ...] = ()
    """What was wrong with the last answer, in words for the annotator."""
    judged: Annotation | None = None
    """The answer that is to be judged; None: an answer is wanted."""
    attempt: int = 0
    """Answers before."""
    seed: int = 0
    """Of this answer."""

    @property
    def decision(self) -> Decision:
        """The one that is asked about."""
        return self.take.decisions[self.index]

    @property
    def kind(self) -> Kind:
        """Of the answer that is wanted."""
        return "verdict" if self.judged else "key_frame" if self.timeline.is_key[self.index] else "between"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, as far as it could be read; of a judge, the annotation that it lets pass."""

    annotation: Annotation | None
    """None where `error` says why there is none."""
    error: str = ""
    """In words for the annotator."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Annotator(Protocol):
    """Who answers queries, or judges answers; many may be asked at once."""

    name: str
    """See `Provenance.annotator`."""
    model: str
    prompt_hash: str

    async def annotate(self, query: Query) -> Reply:
        """Answer one query. Raises what the server raises once its retries are spent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with an annotation."""

    check: CheckName | Literal["judge"]
    text: str
    """In words for the annotator: what is wrong, and what is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What annotating a take, or a whole run, came to."""

    num_decisions: int = 0
    """Annotated or dropped."""
    num_dropped: int = 0
    """Without an acceptable answer after all attempts."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Check -> answers that failed it, each answer counted once per check."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Check -> decisions whose last answer failed it."""
    prompt_tokens: int = 0
    """Of all answers and verdicts, also of dropped decisions; so are `completion_tokens`."""
    completion_tokens: int = 0

    def __add__(self, other: Tally) -> Tally:
        """Sums, field by field."""
        sums = {}
        for name in (f.name for f in fields(self)):
            mine, more = getattr(self, name), getattr(other, name)
            sums[name] = mine + more if isinstance(mine, int) else dict(Counter(mine) + Counter(more))
        return Tally(**sums)
