"""A turn while it grows: who decides, what has been read and said so far, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rlvla.config import EpisodeConfig
from rlvla.prompt import PolicyProcessor
from rlvla.protocols import SampleOutput, Sampler, Tool
from rlvla.types import EndReason, Segment, SegmentKind, Turn


@dataclass(frozen=True, kw_only=True)
class Decider:
    """Everything a decision needs beside the observation."""

    sampler: Sampler
    processor: PolicyProcessor
    tools: Mapping[str, Tool]
    config: EpisodeConfig

    def __post_init__(self) -> None:
        """Raises ValueError when the config has a temperature that the policy has no use for."""
        if self.config.action_temperature is not None and not self.processor.is_parallel:
            raise ValueError(
                f"episode.action_temperature is {self.config.action_temperature}: this checkpoint decodes actions like "
                "text, at episode.temperature; leave it out, or train with action_decoding: parallel"
            )


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


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A finished turn and what it leads to."""

    turn: Turn
    actions: np.ndarray | None
    """[K, A], or None when the turn holds no executable action."""
    end: EndReason | None
    """Why the trajectory ends here, if it does."""
