"""Small turns, trajectories and groups, and a sampler that says what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.types import EndReason, Group, Segment, SegmentKind, TaskSpec, Trajectory, Turn

TASK = TaskSpec(suite="fake", task_id=0, init_state_id=0, seed=0, instruction="press the red pad")
THINK_AND_ACT = ((SegmentKind.PROMPT, 4), (SegmentKind.THINK, 3), (SegmentKind.ACT, 2))
"""Kinds and lengths of the segments of a turn: 4 tokens of context, 5 sampled ones."""


def make_turn(
    layout: Sequence[tuple[SegmentKind, int]] = THINK_AND_ACT,
    *,
    token_ids: Sequence[int] | None = None,
    sampler_logprob: float = -1.0,
    images: Sequence[np.ndarray] = (),
    actions: np.ndarray | None = None,
    texts: Mapping[SegmentKind, str] | None = None,
) -> Turn:
    """A turn.

    Args:
        layout: kind and number of tokens of each segment.
        token_ids: [L]; None: 0, 1, 2 ...
        sampler_logprob: of every sampled token.
        images: N x [H, W, 3] uint8.
        actions: [K, A]; None: one action of 3 zeros.
        texts: what the segments of a kind say.
    """
    segments: list[Segment] = []
    end = 0
    for kind, length in layout:
        segments.append(Segment(kind=kind, start=end, end=end + length, text=(texts or {}).get(kind, "")))
        end += length
    turn = Turn(
        token_ids=np.arange(end, dtype=np.int32) if token_ids is None else np.array(token_ids, np.int32),
        sampler_logprobs=np.zeros(end, np.float32),
        segments=tuple(segments),
        images=tuple(images),
        actions=np.zeros((1, 3), np.float32) if actions is None else actions,
        policy_version=0,
    )
    return replace(turn, sampler_logprobs=np.where(turn.loss_mask, sampler_logprob, 0).astype(np.float32))


def make_trajectory(
    turns: Sequence[Turn] | None = None,
    *,
    end: EndReason = EndReason.SUCCESS,
    reward: float | None = None,
    reward_terms: Mapping[str, float] | None = None,
    advantage: float | None = None,
    task: TaskSpec = TASK,
) -> Trajectory:
    """A trajectory; without `turns` it has one, from `make_turn`."""
    turns = (make_turn(),) if turns is None else tuple(turns)
    return Trajectory(
        task=task,
        turns=turns,
        end=end,
        num_env_steps=sum(len(turn.actions) for turn in turns),
        reward=reward,
        reward_terms=dict(reward_terms or {}),
        advantage=advantage,
        error="the simulator crashed" if end is EndReason.ENV_ERROR else "",
    )


def make_group(rewards: Sequence[float] = (0.0, 1.0), *, task: TaskSpec = TASK) -> Group:
    """A scored group with one trajectory of one turn per reward; a reward above 0 is a success."""
    ends = [EndReason.SUCCESS if reward > 0 else EndReason.MAX_ENV_STEPS for reward in rewards]
    members = [make_trajectory(end=e, reward=r, task=task) for e, r in zip(ends, rewards, strict=True)]
    return Group(task=task, trajectories=tuple(members))


@dataclass(kw_only=True)
class ScriptedSampler:
    """A `protocols.Sampler` that plays token lists, one per request, and keeps the requests."""

    script: Sequence[Sequence[int]]
    """What to answer; each is cut behind the first stop id and at the request's `max_tokens`, as a sampler would."""
    expand: Callable[[Sequence[int], Sequence[np.ndarray]], np.ndarray] = lambda ids, images: np.array(ids, np.int32)
    """(compact ids, images) -> [C] int32, such as `PolicyProcessor.expand`."""
    logprob: float = -1.0
    """Of every token."""
    policy_version: int = 0
    requests: list[SampleRequest] = field(default_factory=list)
    """In order of arrival."""

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """Answer with the next token list.

        Raises:
            IndexError: there is none left.
            ValueError: actions were asked for, and it holds too few.
        """
        if len(self.requests) == len(self.script):
            raise IndexError(f"the script has {len(self.script)} answers, and another was asked for")
        answer = list(self.script[len(self.requests)])[: request.max_tokens]
        self.requests.append(request)
        if request.num_actions and len(answer) != request.num_actions:
            raise ValueError(f"asked for {request.num_actions} action tokens, the script answers {answer}")
        stop = next((i + 1 for i, id_ in enumerate(answer) if id_ in request.stop_ids), len(answer))
        return SampleOutput(
            context_ids=self.expand(request.prompt_ids, request.images),
            token_ids=np.array(answer[:stop], np.int32),
            logprobs=np.full(stop, self.logprob, np.float32),
            policy_version=self.policy_version,
        )
