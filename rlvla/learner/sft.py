"""The trainer of a cold start: demonstrations -> an update. Of one of any number of ranks."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla.config import SFTConfig
from rlvla.data.dataset import DatasetError, DemonstrationSet
from rlvla.data.types import Demonstration
from rlvla.learner.ahead import ahead
from rlvla.learner.collate import Row, to_batch, to_row
from rlvla.learner.engine import DTYPES, Engine, join_launched, poisoned
from rlvla.learner.learner import learning_rate
from rlvla.policies.family import Policy


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """B rows, L tokens, as a forward takes them, on the CPU."""

    inputs: Mapping[str, torch.Tensor]
    """Of `Policy.inputs`."""
    loss_mask: torch.Tensor
    """[B, L] bool."""

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that are learned from."""
        return int(self.loss_mask.sum())


class SFTTrainer:
    """One rank; all that `accelerate launch` or torchrun has started make the same calls.

    Args:
        cfg: of the run; `batch_size` divides over the ranks.
        model: Hugging Face model.
        policy: its own.
        demonstrations: to learn from.
    """

    def __init__(self, cfg: SFTConfig, model: Any, policy: Policy, demonstrations: DemonstrationSet) -> None:
        self._cfg = cfg
        self._policy = policy
        self._demonstrations = demonstrations
        self._train, self._validation = split(demonstrations.episode_index, cfg.validation_share, cfg.seed)
        self._steps: Iterator[list[MicroBatch]] = iter(())
        self._next_step = -1
        """That `_steps` has next."""
        self._encoding = threading.Lock()
        """Of the tokenizer, which refuses a thread while it serves another one."""
        self._device = join_launched()
        self.engine = Engine(policy.prepare(model, cfg.learner, start=cfg.model), cfg.learner, self._device)
        self._model = self.engine.model
        self._model.train()
        policy.check(self._model)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the `step`-th batch; skipped where loss or gradient is not finite."""
        started = time.perf_counter()
        micro_batches = self._prepared(step)
        num_tokens = self._sum(sum(micro.num_sampled_tokens for micro in micro_batches))
        total = 0.0
        for i, micro in enumerate(micro_batches):
            loss = poisoned(self._token_losses(micro).sum())
            self.engine.backward(loss * (1 / num_tokens), is_last=i == len(micro_batches) - 1)
            total += float(loss.detach())
        lr = learning_rate(self._cfg.learner, step, self._cfg.num_steps)
        grad_norm = self.engine.step(lr)
        seconds = time.perf_counter() - started
        return {
            "loss": self._sum(total) / num_tokens,
            "lr": lr,
            "tokens_per_s": num_tokens / seconds,
            "skipped_updates": float(not math.isfinite(grad_norm)),
        }

    def batch(self, step: int) -> np.ndarray:
        """The rows of the data set that a step learns from; they depend on nothing but the seed and the step."""
        return batch_indices(self._train, self._cfg.batch_size, step, self._cfg.seed)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of a sampled token on episodes that are not trained on; one micro-batch of them is in memory."""
        self._model.eval()
        order, num_tokens = self._validated
        rows_each = self._cfg.learner.micro_batch_rows
        num_batches = math.ceil(len(self._validation) / self.engine.world / rows_each)
        # In ZeRO-3 a forward gathers weights from all ranks: one that has no rows left goes along with any row.
        any_row = self._validation[:1]
        parts = _parts(order, num_batches)
        tasks = (partial(self._micro_batch, part if len(part) else any_row) for part in parts)
        total = 0.0
        for part, micro in zip(parts, ahead(tasks, self._cfg.data_threads), strict=True):
            loss = float(self._token_losses(micro).sum())
            total += loss if len(part) else 0.0
        self._model.train()
        return self._sum(total) / num_tokens

    @cached_property
    def _validated(self) -> tuple[np.ndarray, float]:
        """This rank's rows to validate on, from the shortest to the longest, and the sampled tokens of all ranks' rows.

        They are read once for it: too many to be kept, and in another order they would be padded to other lengths.
        """
        mine = self._validation[self.engine.rank :: self.engine.world]
        sizes = [(row.num_tokens, row.num_sampled_tokens) for row in self._each_row(mine)]
        order = sorted(range(len(mine)), key=lambda i: sizes[i][0])
        return mine[order], self._sum(sum(num_sampled for _, num_sampled in sizes))

    def save(self, path: Path) -> None:
        """Write the policy in Hugging Face format, an adapter beside it in float32; every rank must call."""
        self.engine.save_policy(self._policy, path)

    def _prepared(self, step: int) -> list[MicroBatch]:
        """This rank's share of a step's batch; those of the next steps are begun, as many as `data_threads`."""
        if step != self._next_step:
            tasks = (partial(self._micro_batches, later) for later in range(step, self._cfg.num_steps))
            self._steps = ahead(tasks, self._cfg.data_threads)
        self._next_step = step + 1
        return next(self._steps)

    def _micro_batches(self, step: int) -> list[MicroBatch]:
        """Of as many rows as all ranks have, of like length."""
        mine = self.batch(step)[self.engine.rank :: self.engine.world]
        count = math.ceil(self._cfg.batch_size / self.engine.world / self._cfg.learner.micro_batch_rows)
        rows = sorted(self._each_row(mine), key=lambda row: row.num_tokens)
        return [self._inputs(part) for part in _parts(rows, count)]

    def _micro_batch(self, indices: np.ndarray) -> MicroBatch:
        return self._inputs([*self._each_row(indices)])

    def _inputs(self, rows: Sequence[Row]) -> MicroBatch:
        batch = to_batch(rows)
        inputs = self._policy.inputs(batch.turns, torch.device("cpu"), DTYPES[self._cfg.learner.dtype])
        return MicroBatch(inputs=inputs, loss_mask=batch.loss_mask)

    def _each_row(self, indices: np.ndarray) -> Iterator[Row]:
        for index in indices:
            demonstration = self._demonstrations[index]
            if self._cfg.blind:
                demonstration = _blinded(demonstration)
            try:
                with self._encoding:
                    turn = self._policy.to_turn(demonstration)
            except DatasetError as error:
                raise DatasetError(f"{self._demonstrations.place(index)}: {error}") from error
            yield to_row(turn)

    def _token_losses(self, micro: MicroBatch) -> torch.Tensor:
        inputs = {name: values.to(self._device) for name, values in micro.inputs.items()}
        return self._policy.sft_losses(self._model, inputs, micro.loss_mask.to(self._device))

    def _sum(self, value: float) -> float:
        """Over all ranks."""
        return float(self.engine.total(torch.tensor(float(value), dtype=torch.float64)))


def _blinded(demonstration: Demonstration) -> Demonstration:
    """One whose pictures are black."""
    kinds = (demonstration.images, demonstration.crops)
    images, crops = (tuple(np.zeros_like(picture) for picture in kind) for kind in kinds)
    return replace(demonstration, images=images, crops=crops)


def split(episode_index: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train and to validate on; whole episodes go one way, at least one to validation."""
    episodes = np.random.default_rng(seed).permutation(np.unique(episode_index))
    num_validation = max(1, round(share * len(episodes)))
    is_validation = np.isin(episode_index, episodes[:num_validation])
    if is_validation.all():
        raise ValueError(f"the data set has {len(episodes)} episodes: too few to train and to validate on")
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def batch_indices(rows: np.ndarray, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The rows of the `step`-th batch: epoch after epoch, each in an order of its own."""
    start = step * batch_size
    epochs = range(start // len(rows), (start + batch_size - 1) // len(rows) + 1)
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(rows) for epoch in epochs])
    offset = start - epochs[0] * len(rows)
    return order[offset : offset + batch_size]


def _parts(rows: Any, count: int) -> list[Any]:
    """`count` slices of a sequence or an array, of like size; some may be empty."""
    cuts = [round(i * len(rows) / count) for i in range(count + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(cuts)]
