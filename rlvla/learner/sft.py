"""The trainer of a cold start: demonstrations -> an update. Of one of any number of ranks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla.config import SFTConfig
from rlvla.data.dataset import DemonstrationSet
from rlvla.learner.collate import Row, to_batch, to_row
from rlvla.learner.engine import DTYPES, Engine, join_launched, poisoned
from rlvla.learner.learner import learning_rate
from rlvla.policies.family import Policy


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
        self._device = join_launched()
        self.engine = Engine(policy.prepare(model, cfg.learner, start=cfg.model), cfg.learner, self._device)
        self._model = self.engine.model
        self._model.train()
        policy.check(self._model)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the `step`-th batch; skipped where loss or gradient is not finite."""
        started = time.perf_counter()
        rows = self._rows(self.batch(step))
        num_tokens = self._sum(sum(row.num_sampled_tokens for row in rows))
        num_micro_batches = math.ceil(self._cfg.batch_size / self.engine.world / self._cfg.learner.micro_batch_rows)
        total = 0.0
        for i, micro in enumerate(_micro_batches(rows, num_micro_batches)):
            loss = poisoned(self._token_losses(micro).sum())
            self.engine.backward(loss * (1 / num_tokens), is_last=i == num_micro_batches - 1)
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
        """Mean loss of a sampled token on episodes that are not trained on."""
        self._model.eval()
        rows = self._rows(self._validation)
        num_batches = math.ceil(len(self._validation) / self.engine.world / self._cfg.learner.micro_batch_rows)
        # In ZeRO-3 a forward gathers weights from all ranks: one that has no rows left goes along with any row.
        any_row = self._rows_at(self._validation[:1])
        total = 0.0
        for part in _micro_batches(rows, num_batches):
            loss = float(self._token_losses(part or any_row).sum())
            total += loss if part else 0.0
        num_tokens = self._sum(sum(row.num_sampled_tokens for row in rows))
        self._model.train()
        return self._sum(total) / num_tokens

    def save(self, path: Path) -> None:
        """Write the policy in Hugging Face format, an adapter beside it in float32; every rank must call."""
        self.engine.save_policy(self._policy, path)

    def save_state(self, path: Path) -> None:
        """Write all that an exact resume needs; every rank must call."""
        self.engine.state.save(path, counters={})

    def load_state(self, path: Path) -> None:
        """Go on from `save_state`; raises as `State.load` does."""
        self.engine.state.load(path)

    def _rows(self, indices: np.ndarray) -> list[Row]:
        """This rank's share of some rows of the data set."""
        return self._rows_at(indices[self.engine.rank :: self.engine.world])

    def _rows_at(self, indices: np.ndarray) -> list[Row]:
        return [to_row(self._policy.to_turn(self._demonstrations[i])) for i in indices]

    def _token_losses(self, rows: Sequence[Row]) -> torch.Tensor:
        batch = to_batch(rows).to(self._device)
        inputs = self._policy.inputs(batch.turns, self._device, DTYPES[self._cfg.learner.dtype])
        return self._policy.sft_losses(self._model, inputs, batch.loss_mask)

    def _sum(self, value: float) -> float:
        """Over all ranks."""
        return float(self.engine.total(torch.tensor(float(value), dtype=torch.float64)))


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


def _micro_batches(rows: Sequence[Row], count: int) -> list[Sequence[Row]]:
    """`count` parts of rows of like length; the last ones may be empty."""
    by_length = sorted(rows, key=lambda row: row.num_tokens)
    cuts = [round(i * len(rows) / count) for i in range(count + 1)]
    return [by_length[start:end] for start, end in itertools.pairwise(cuts)]
