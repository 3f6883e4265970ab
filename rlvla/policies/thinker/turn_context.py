"""A turn while it grows: what has been read and said, and what is known of the turns before."""

from __future__ import annotations

from collections.abc import Sequence
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
        """What the next decision knows, `turn` being of this one; `think_every` as in `EpisodeConfig`."""
        num_decisions, thought = self.num_decisions + 1, self.thought
        if not self.reuses:
            thought = Thought()
            for said in turn.of_kind(SegmentKind.THINK)[-1:]:
                thought = Thought(token_ids=turn.token_ids[said.start : said.end], text=said.text)
        return Recall(thought=thought, reuses=num_decisions % think_every != 0, num_decisions=num_decisions)


@dataclass(kw_only=True)
class Context:
    """A turn while it grows: compact ids for the sampler, expanded ids and segments for the learner."""

    processor: PolicyProcessor
    compact_ids: list[int] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    policy_version: int = 0

    @classmethod
    def begin(cls, processor: PolicyProcessor, instruction: str, images: Sequence[np.ndarray]) -> Context:
        """With the prompt alone, which is the first segment."""
        context = cls(processor=processor)
        context._add(processor.prompt_ids(instruction, len(images)), SegmentKind.PROMPT, instruction, images)
        return context

    def ends_in(self, mark: str) -> bool:
        """Whether this is the last token."""
        return self.compact_ids[-1] == self.processor.vocabulary.mark_ids[mark]

    def add_mark(self, mark: str) -> None:
        """Put a mark there in the policy's place: behind an `<act>` nothing but the action is left to it."""
        self._add([self.processor.vocabulary.mark_ids[mark]], SegmentKind.PROMPT)

    def add_reused(self, thought: Thought) -> None:
        """Append a thought of an earlier decision, as context; nothing where it had none."""
        if len(thought.token_ids):
            self._add(thought.token_ids.tolist(), SegmentKind.PROMPT, thought.text)
            self.segments[-1] = replace(self.segments[-1], is_reused=True)

    def add_result(self, result: np.ndarray | str) -> None:
        """Append what a tool returned."""
        if isinstance(result, str):
            self._add(self.processor.result_ids(image=False, text=result), SegmentKind.TOOL_RESULT, result)
        else:  # copied, since a tool may draw its next picture into the same array
            self._add(self.processor.result_ids(image=True), SegmentKind.TOOL_RESULT, "", [np.array(result)])

    def _add(
        self, compact_ids: Sequence[int], kind: SegmentKind, text: str = "", images: Sequence[np.ndarray] = ()
    ) -> None:
        """Append tokens that we, not the policy, put there."""
        ids, start = self.processor.expand(compact_ids, images).tolist(), len(self.token_ids)
        self.compact_ids += compact_ids
        self.images += images
        self.token_ids += ids
        self.logprobs += [0.0] * len(ids)
        self.segments.append(Segment(kind=kind, start=start, end=len(self.token_ids), text=text))

    def add_said(self, token_ids: Sequence[int], logprobs: Sequence[float], segments: Sequence[Segment]) -> None:
        """Append what the policy says; the segments are at their place in the turn."""
        self.compact_ids += token_ids
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.segments += segments

    def add_output(self, output: SampleOutput, segments: Sequence[Segment]) -> None:
        """Append what was sampled; raises RuntimeError if the sampler saw another context than we keep."""
        if output.context_ids.tolist() != self.token_ids:
            raise RuntimeError(
                f"the sampler expanded the context to {len(output.context_ids)} tokens, the processor to "
                f"{len(self.token_ids)}: the checkpoint's processor and the sampler disagree"
            )
        self.add_said(output.token_ids.tolist(), output.logprobs.tolist(), segments)
        self.policy_version = output.policy_version

    def turn(self, actions: np.ndarray | None, latency_s: float = 0.0) -> Turn:
        """What it has become; actions are [K, A], or None where there are none."""
        return Turn(
            token_ids=np.array(self.token_ids, np.int32),
            sampler_logprobs=np.array(self.logprobs, np.float32),
            segments=tuple(self.segments),
            images=tuple(self.images),
            actions=np.zeros((0, 0), np.float32) if actions is None else actions,
            policy_version=self.policy_version,
            latency_s=latency_s,
        )
