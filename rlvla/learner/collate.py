"""Groups -> rows -> padded batches: one turn is one row, and nothing that is not learned from takes space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from rlvla.config import num_minibatches
from rlvla.types import Group, SegmentKind, Turn

KINDS = tuple(SegmentKind)
"""`Batch.segment_kind` holds indices into this; padding is a prompt's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One turn, ready to be learned from."""

    turn: Turn
    loss_mask: np.ndarray
    """[L] bool, True where the policy sampled the token."""
    advantage: float
    trajectory: int
    """Number of the row's trajectory in this step."""
    token_weight: float = 0.0
    """Weight of each sampled token in the objective; see `rlvla.learner.loss.token_weights`."""

    @property
    def num_tokens(self) -> int:
        """L."""
        return len(self.loss_mask)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that are learned from."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """B rows padded on the right to the longest, L tokens; the model's inputs the policy makes of `turns`."""

    turns: tuple[Turn, ...]
    loss_mask: torch.Tensor
    """[B, L] bool."""
    segment_kind: torch.Tensor
    """[B, L] int8, index into `KINDS`."""
    sampler_logprobs: torch.Tensor
    """[B, L] float32."""
    weights: torch.Tensor
    """[B, L] float32, 0 off the loss mask."""
    advantages: torch.Tensor
    """[B] float32."""
    old_logprobs: torch.Tensor | None = None
    """[B, L] float32, once scored."""
    ref_logprobs: torch.Tensor | None = None
    """[B, L] float32, once scored."""
    ref_centres: torch.Tensor | None = None
    """[B, L, D] float32, likewise; see `Scored`."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: t.to(device) for name, t in tensors.items() if isinstance(t, torch.Tensor)}
        return replace(self, **moved)


def to_row(turn: Turn, *, advantage: float = 0.0, trajectory: int = 0) -> Row:
    """A turn that is learned from."""
    return Row(turn=turn, loss_mask=turn.loss_mask, advantage=advantage, trajectory=trajectory)


def rows(groups: Iterable[Group], *, mask_context_full: bool) -> list[Row]:
    """All turns that are learned from, in order.

    Left out are trajectories that take no part (`Trajectory.takes_part`), and turns without a token to learn from.
    Turns whose advantage is 0 stay: the KL term still acts on them.

    Raises:
        ValueError: a trajectory has no advantage yet.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    live: list[Row] = []
    for number, trajectory in enumerate(trajectories):
        if not trajectory.takes_part(mask_context_full=mask_context_full):
            continue
        if trajectory.advantage is None:
            raise ValueError(f"a trajectory of {trajectory.task} has no advantage: call with_advantages first")
        turns = (turn for turn in trajectory.turns if turn.loss_mask.any())
        live += [to_row(turn, advantage=trajectory.advantage, trajectory=number) for turn in turns]
    return live


def minibatches(rows: Sequence[Row], num_trajectories: int, rng: np.random.Generator) -> list[list[Row]]:
    """Deal whole trajectories, shuffled, into `config.num_minibatches`, whose sizes differ by one at most.

    A rest of one trajectory would be an optimizer step as large as that of all the others: AdamW divides by the
    gradient's size, and each of its tokens would weigh as much as all of them.
    """
    numbers = rng.permutation(np.unique([row.trajectory for row in rows]))
    parts = np.array_split(numbers, num_minibatches(len(numbers), num_trajectories))
    return [[row for row in rows if row.trajectory in part] for part in (set(part.tolist()) for part in parts)]


def share(rows: Sequence[Row], rank: int, world: int, max_rows: int) -> list[list[Row]]:
    """One rank's micro-batches of a minibatch, `max_rows` at most in each, of like length; as many on each rank.

    Longest first, rows are dealt there and back (0 1 2 2 1 0 ..), which balances tokens and differs by one row at
    most. A rank that is short of rows repeats its shortest with no token to learn: all ranks must run forward and
    backward equally often.
    """
    by_length = sorted(rows, key=lambda row: row.num_tokens, reverse=True)
    cycle = [*range(world), *reversed(range(world))]
    mine = [row for i, row in enumerate(by_length) if cycle[i % (2 * world)] == rank]
    num_batches = math.ceil(math.ceil(len(rows) / world) / max_rows)
    idle = mine[-1] if mine else by_length[-1]
    idle = replace(idle, loss_mask=np.zeros_like(idle.loss_mask), token_weight=0.0)
    mine += [idle] * (num_batches - len(mine))
    cuts = [i * len(mine) // num_batches for i in range(num_batches + 1)]
    return [mine[start:end] for start, end in itertools.pairwise(cuts)]


def to_batch(rows: Sequence[Row]) -> Batch:
    """Pad rows on the right to the longest of them."""
    loss_mask = _pad([row.loss_mask for row in rows], torch.bool)
    token_weight = torch.tensor([row.token_weight for row in rows], dtype=torch.float32)
    return Batch(
        turns=tuple(row.turn for row in rows),
        loss_mask=loss_mask,
        segment_kind=_pad([_kinds(row.turn) for row in rows], torch.int8),
        sampler_logprobs=_pad([row.turn.sampler_logprobs for row in rows], torch.float32),
        weights=token_weight[:, None] * loss_mask,
        advantages=torch.tensor([row.advantage for row in rows], dtype=torch.float32),
    )


def _kinds(turn: Turn) -> np.ndarray:
    """[L] int8, index into `KINDS` of each token's segment."""
    kinds = np.zeros(len(turn.token_ids), np.int8)
    for segment in turn.segments:
        kinds[segment.start : segment.end] = KINDS.index(segment.kind)
    return kinds


def _pad(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
    return pad_sequence([torch.tensor(array, dtype=dtype) for array in arrays], batch_first=True)
