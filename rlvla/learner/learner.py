"""The learner: one DeepSpeed rank that turns scored groups into policy updates. Knows nothing of Ray or vLLM."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla.config import GRPOConfig, LearnerConfig
from rlvla.learner import collate, loss
from rlvla.learner.collate import Batch, Row
from rlvla.learner.engine import DTYPES, Engine, join, poisoned
from rlvla.learner.pixels import THREADS, Pixels
from rlvla.policies.buckets import Weights
from rlvla.policies.family import Scored, load_policy
from rlvla.policies.models.lora import Adapter
from rlvla.policies.weights import holding
from rlvla.types import Group, SegmentKind

METRICS = {
    "loss": "objective, mean over the step's updates",
    "kl": "KL(policy || reference) per sampled token, nats",
    "kl/<kind>": "the same over one kind of segment: think, tool_call, act, malformed",
    "entropy": "of the policy per sampled token, nats",
    "clip_fraction_low": "share of sampled tokens whose ratio fell below 1 - clip_low with a negative advantage",
    "clip_fraction_high": "share of sampled tokens whose ratio rose above 1 + clip_high with a positive advantage",
    "ratio_max": "largest policy / old probability of a sampled token",
    "mismatch_kl": "KL(sampler || learner before the step) per sampled token, k3, nats",
    "grad_norm": "before clipping, mean over the step's updates",
    "lr": "of the step's last update",
    "skipped_updates": "updates left out, as loss or gradient was not finite, with all that they measured",
    "num_rows": "turns learned from",
    "num_tokens": "sampled tokens learned from",
    "tokens_per_s": "tokens of those turns, context included, times epochs, per second of `time/update_s`",
    "time/update_s": "wall time of `Learner.step`, seconds",
    "time/save_s": "of it, waited for the state before the step to be written",
}
"""Name -> meaning. The KL terms are left out without a reference (kl_coef 0), and a kind that does not occur."""


def learning_rate(cfg: LearnerConfig, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total_steps`: linear warm-up, then the schedule to 0."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / (cfg.warmup_steps + 1)
    progress = min(1.0, (step - cfg.warmup_steps) / max(1, total_steps - cfg.warmup_steps))
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return cfg.lr * factor[cfg.schedule]


class Learner:
    """One rank of the learner; every rank makes the same calls with the same arguments.

    Args:
        cfg: of the run; `model` is where training starts, and the frozen reference.
        rank: of this process.
        world: number of processes.
        master: `host:port` where rank 0 listens.
    """

    def __init__(self, cfg: GRPOConfig, *, rank: int = 0, world: int = 1, master: str = "127.0.0.1:0") -> None:
        self._run, self._cfg, self._loss_cfg = cfg, cfg.learner, cfg.loss
        self._total_steps = cfg.num_steps * cfg.num_epochs * cfg.minibatches_per_step
        self._rank, self._world = rank, world
        self._device = join(rank, world, master)
        self._policy = load_policy(cfg.model)
        torch.manual_seed(cfg.seed)
        self._engine = Engine(self._policy.load_to_train(cfg.model, cfg.learner), cfg.learner, self._device)
        try:
            self._policy.check(self._engine.model)
        except RuntimeError:
            self._engine.close()  # else this process could join no group any more
            raise
        self._reference: Any = None
        if self._cfg.lora is None and self._loss_cfg.kl_coef != 0:  # else a copy of the adapter will do, or none
            model = self._policy.load_model(cfg.model, DTYPES[self._cfg.dtype])
            self._reference = model.to(self._device).eval().requires_grad_(False)
        self._start = self._engine.copy() if self._cfg.lora is not None and cfg.loss.kl_coef else {}
        self._num_steps = 0
        self._num_updates = 0

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Learn from one round of rollout.

        Args:
            groups: with advantages; the same on every rank.

        Returns:
            Metrics as in `METRICS`, over all ranks. An update whose loss or gradient is not finite is skipped: weights
            and optimizer stay bit for bit. Where all are, or without a row to learn from, only counts are returned.
        """
        started, waited_s = time.perf_counter(), self._engine.state.waited_s
        rows = collate.rows(groups, mask_context_full=self._run.mask_context_full)
        self._num_steps += 1
        if not rows:
            return {"num_rows": 0.0, "num_tokens": 0.0, "skipped_updates": 0.0}
        minibatches = self._minibatches(rows)
        made = self._updates(minibatches)
        metrics = {"skipped_updates": float(len(minibatches) - len(made))} | self._measured(made)
        elapsed = time.perf_counter() - started
        return metrics | {
            "num_rows": float(len(rows)),
            "num_tokens": float(sum(row.num_sampled_tokens for row in rows)),
            "tokens_per_s": sum(row.num_tokens for row in rows) * self._run.num_epochs / elapsed,
            "time/update_s": elapsed,
            "time/save_s": self._engine.state.waited_s - waited_s,
        }

    def _minibatches(self, rows: Sequence[Row]) -> list[list[Batch]]:
        """This rank's micro-batches of each minibatch of each epoch, weighted."""
        rng = np.random.default_rng((self._run.seed, self._num_steps))
        epochs = [collate.minibatches(rows, self._run.minibatch_trajectories, rng) for _ in range(self._run.num_epochs)]
        return [self._micro_batches(minibatch) for minibatch in itertools.chain(*epochs)]

    def _micro_batches(self, minibatch: Sequence[Row]) -> list[Batch]:
        weights = loss.token_weights(
            torch.tensor([row.num_sampled_tokens for row in minibatch]),
            torch.tensor([row.trajectory for row in minibatch]),
            self._loss_cfg.average,
            self._loss_cfg.constant_length,
        )
        weighted = [replace(row, token_weight=w) for row, w in zip(minibatch, weights.tolist(), strict=True)]
        shares = collate.share(weighted, self._rank, self._world, self._cfg.micro_batch_rows)
        return [collate.to_batch(rows) for rows in shares]

    def _updates(self, minibatches: Sequence[Sequence[Batch]]) -> list[_Update]:
        """The optimizer steps that were made, one for each minibatch at most."""
        is_single = len(minibatches) == 1
        uses = [batch.turns for batches in minibatches for batch in batches] * (1 if is_single else 2)
        dtype = DTYPES[self._cfg.dtype]
        num_threads = 0 if self._device.type == "cpu" else THREADS
        with Pixels(lambda turn: self._policy.pixels(turn, dtype), uses, num_threads) as pixels:

            def inputs(batch: Batch) -> Mapping[str, torch.Tensor]:
                return self._policy.inputs(batch.turns, self._device, dtype, pixels.take(batch.turns))

            if not is_single:  # before the first update, since old means before it
                minibatches = [[self._scored(b, inputs(b), with_old=True) for b in batches] for batches in minibatches]
            updates = [self._update(batches, inputs, scored=not is_single) for batches in minibatches]
        return [update for update in updates if update is not None]

    @torch.no_grad()
    def _scored(self, batch: Batch, inputs: Mapping[str, torch.Tensor], *, with_old: bool) -> Batch:
        """The batch with the reference's logprobs, and with the policy's own of before the first update."""

        def score(model: Any) -> Scored:
            return self._policy.logprobs(model, inputs, self._run.episode, mask=batch.loss_mask)

        if self._reference is not None:
            batch = _with_reference(batch, score(self._reference))
        elif self._loss_cfg.kl_coef != 0:
            with holding(self._engine.model, self._start):
                batch = _with_reference(batch, score(self._engine.model))
        return replace(batch, old_logprobs=score(self._engine.model).logprobs) if with_old else batch

    def _update(
        self, batches: Sequence[Batch], inputs_of: Callable[[Batch], Mapping[str, torch.Tensor]], *, scored: bool
    ) -> _Update | None:
        """One optimizer step over this rank's micro-batches of a minibatch; None where it was skipped."""
        objective = torch.zeros((), dtype=torch.float64, device=self._device)
        sums: dict[str, torch.Tensor] = {}
        ratios: list[torch.Tensor] = []
        for i, batch in enumerate(batches):
            inputs = inputs_of(batch)
            if not scored:
                batch = self._scored(batch, inputs, with_old=False)
            value, ratio, measured = self._micro_batch_loss(batch.to(self._device), inputs)
            objective += value.detach()
            sums = {name: number + sums.get(name, 0) for name, number in measured.items()}
            ratios.append(ratio)
            self._engine.backward(poisoned(value), is_last=i == len(batches) - 1)
        lr = learning_rate(self._cfg, self._num_updates, self._total_steps)
        total, grad_norm = float(self._engine.total(objective)), self._engine.step(lr)
        if not math.isfinite(grad_norm):
            return None
        self._num_updates += 1
        return _Update(objective=total, grad_norm=grad_norm, lr=lr, sums=sums, ratio=torch.stack(ratios).max())

    def _micro_batch_loss(
        self, batch: Batch, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """This micro-batch's summand of the objective, its largest ratio, and sums over its sampled tokens by name."""
        logprobs, entropy, centres = self._policy.logprobs(
            self._engine.model,
            inputs,
            self._run.episode,
            mask=batch.loss_mask,
            with_entropy=True,
            entropy_grad=self._loss_cfg.entropy_coef != 0,
        )
        assert entropy is not None
        old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        token_loss, stats = loss.grpo_token_loss(
            logprobs,
            old_logprobs=old_logprobs,
            sampler_logprobs=batch.sampler_logprobs,
            ref_logprobs=batch.ref_logprobs,
            exact_kl=self._exact_kl(centres, batch),
            entropy=entropy if self._loss_cfg.entropy_coef else None,
            advantages=batch.advantages,
            mask=batch.loss_mask,
            cfg=self._loss_cfg,
        )
        mask = batch.loss_mask
        per_token = {
            "kl": stats.kl,
            "entropy": entropy.detach() * mask,
            "clip_fraction_low": stats.is_clipped_low,
            "clip_fraction_high": stats.is_clipped_high,
            "mismatch_kl": stats.mismatch_kl,
            "tokens": mask,
        }
        for kind in _KINDS:
            of_kind = mask & (batch.segment_kind == collate.KINDS.index(kind))
            per_token |= {f"kl/{kind}": stats.kl * of_kind, f"tokens/{kind}": of_kind}
        sums = {name: values.sum(dtype=torch.float64) for name, values in per_token.items()}
        return (token_loss * batch.weights).sum(), stats.ratio.max().double(), sums

    def _exact_kl(self, centres: torch.Tensor | None, batch: Batch) -> torch.Tensor | None:
        """[B, U], where `loss.kl_estimator` asks for it; raises ValueError where the policy has none."""
        if self._loss_cfg.kl_estimator != "exact" or batch.ref_logprobs is None:
            return None
        if centres is None or batch.ref_centres is None:
            raise ValueError("loss.kl_estimator is exact, which this policy's units do not have: set k3")
        return (centres - batch.ref_centres).square().sum(-1) / 2

    def _measured(self, updates: Sequence[_Update]) -> dict[str, float]:
        """Means over all ranks; without an update there is nothing to average."""
        if not updates:
            return {}
        names = updates[0].sums.keys()
        of_rank = torch.stack([torch.stack([update.sums[name] for update in updates]).sum() for name in names])
        sums = dict(zip(names, self._engine.total(of_rank).tolist(), strict=True))
        ratio = torch.stack([update.ratio for update in updates]).max()
        metrics = {
            "loss": float(np.mean([update.objective for update in updates])),
            "ratio_max": float(self._engine.total(ratio, largest=True)),
            "grad_norm": float(np.mean([update.grad_norm for update in updates])),
            "lr": updates[-1].lr,
        }
        kinds = [f"/{kind}" for kind in _KINDS if sums[f"tokens/{kind}"]]
        kl = {f"kl{kind}": sums[f"kl{kind}"] / sums[f"tokens{kind}"] for kind in ("", *kinds)}
        means = ("entropy", "clip_fraction_low", "clip_fraction_high", "mismatch_kl")
        metrics |= {name: sums[name] / sums["tokens"] for name in means}
        return metrics | (kl if self._loss_cfg.kl_coef else {})

    def changes(self) -> Adapter | Weights | None:
        """See `Engine.changes`."""
        return self._engine.changes(self._policy, int(self._run.cluster.bucket_mb * 2**20))

    def save(self, path: Path) -> None:
        """Write the policy as a checkpoint folder; every rank must call."""
        self._engine.save_policy(self._policy, path)

    def begin_state(self, path: Path) -> None:
        """Begin to write all that an exact resume needs, weights, optimizer, counters and such; see `State.begin`."""
        self._engine.state.begin(path, {"steps": self._num_steps, "updates": self._num_updates})

    def finish_state(self) -> dict[str, int]:
        """See `State.finish`."""
        return self._engine.state.finish()

    def load_state(self, path: Path) -> None:
        """Go on from such a state; raises FileNotFoundError or ValueError naming the file that does not fit."""
        counters = self._engine.state.load(path)
        self._num_steps, self._num_updates = counters["steps"], counters["updates"]

    def close(self) -> None:
        """Leave the process group."""
        self._engine.close()


def _with_reference(batch: Batch, scored: Scored) -> Batch:
    return replace(batch, ref_logprobs=scored.logprobs, ref_centres=scored.centres)


_KINDS = [kind for kind in SegmentKind if kind.is_sampled]


@dataclass(frozen=True, kw_only=True)
class _Update:
    """One optimizer step that was made, as this rank measured it."""

    objective: float
    """Of all ranks, as are the next two."""
    grad_norm: float
    lr: float
    sums: Mapping[str, torch.Tensor]
    """Over this rank's sampled tokens, by name; the same names in the same order on every rank."""
    ratio: torch.Tensor
    """The largest."""
