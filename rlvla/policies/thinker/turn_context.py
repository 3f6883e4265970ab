"""A turn while it grows: what has been read and said, what is known of the turns before, what was executed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleOutput
from rlvla.types import Segment, SegmentKind, Turn


@dataclass(frozen=True, kw_only=True)
class Thought:
    """What the policy thought last in a turn; empty where it did not think."""

    token_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """[L] int32 as sampled, its marks included."""
    text: str = ""
    """Without the marks."""

    @classmethod
    def last_of(cls, turn: Turn) -> Thought:
        """The turn's last thought."""
        thoughts = turn.of_kind(SegmentKind.THINK)
        if not thoughts:
            return cls()
        return cls(token_ids=turn.token_ids[thoughts[-1].start : thoughts[-1].end], text=thoughts[-1].text)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What a decision knows of the thoughts before it; the first of an episode knows nothing."""

    thought: Thought = field(default_factory=Thought)
    """The last one of the last turn in which the policy was to think."""
    reuses: bool = False
    """Whether this decision goes by `thought` instead of thinking."""
    num_decisions: int = 0
    """Before this one."""

    def after(self, turn: Turn, *, think_every: int) -> Recall:
        """What the next decision knows.

        Args:
            turn: of this decision.
            think_every: see `EpisodeConfig`.
        """
        num_decisions = self.num_decisions + 1
        thought = self.thought if self.reuses else Thought.last_of(turn)
        return Recall(thought=thought, reuses=num_decisions % think_every != 0, num_decisions=num_decisions)


@dataclass(kw_only=True)
class Context:
    """A turn while it grows: compact ids for the sampler, expanded ids and segments for the learner."""

    compact_ids: list[int]
    images: list[np.ndarray]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    policy_version: int = 0

    @property
    def num_prefix_tokens(self) -> int:
        """Of the prompt, which is the first segment."""
        return self.segments[0].end

    def ends_in(self, id_: int) -> bool:
        """Whether this is the last token."""
        return self.compact_ids[-1] == id_

    def add_context(self, ids: np.ndarray, kind: SegmentKind, text: str = "") -> None:
        """Append tokens that we, not the policy, put there."""
        start = len(self.token_ids)
        self.token_ids += ids.tolist()
        self.logprobs += [0.0] * len(ids)
        self.segments.append(Segment(kind=kind, start=start, end=len(self.token_ids), text=text))

    def add_reused(self, thought: Thought) -> None:
        """Append a thought of an earlier decision, as context; nothing where it had none."""
        if len(thought.token_ids):
            self.compact_ids += thought.token_ids.tolist()
            self.add_context(thought.token_ids, SegmentKind.PROMPT, thought.text)
            self.segments[-1] = replace(self.segments[-1], is_reused=True)

    def add_output(self, output: SampleOutput, segments: list[Segment]) -> None:
        """Append what the policy sampled; raises RuntimeError if the sampler saw another context than we keep."""
        if output.context_ids.tolist() != self.token_ids:
            raise RuntimeError(
                f"the sampler expanded the context to {len(output.context_ids)} tokens, the processor to "
                f"{len(self.token_ids)}: the checkpoint's processor and the sampler disagree"
            )
        self.compact_ids += output.token_ids.tolist()
        self.token_ids += output.token_ids.tolist()
        self.logprobs += output.logprobs.tolist()
        self.segments += segments
        self.policy_version = output.policy_version


def executed(turn: Turn, actions: np.ndarray, processor: PolicyProcessor) -> Turn:
    """A turn whose chunk the env has taken, the whole of it or its first steps; what it did not is marked.

    Args:
        turn: with one ACT segment, of a whole chunk.
        actions: [k, A] of its K steps.
        processor: of the policy.
    """
    (index,) = (i for i, segment in enumerate(turn.segments) if segment.kind is SegmentKind.ACT)
    act = turn.segments[index]
    first = act.start + int(turn.token_ids[act.start] == processor.vocabulary.mark_ids["<act>"])
    span = (first + len(actions) * processor.codec.chunk_shape[1], first + processor.decoding.num_actions)
    marked = replace(act, unexecuted=span if span[0] < span[1] else None)
    return replace(turn, actions=actions, segments=(*turn.segments[:index], marked, *turn.segments[index + 1 :]))
