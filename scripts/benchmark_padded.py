"""The learner that ours is compared with: a plain torch + transformers loop over padded batches.

Same checkpoint, reference, objective (`rlvla.learner.loss`), scoring of tokens (`policy.py`), AdamW, gradient clipping,
minibatches and rows per forward as ours, in one process, without DeepSpeed. Two ways to lay the rows out, both in the
order in which the rollout gave them:

- `padded`: as SimpleVLA-RL's learner (PRIME-RL/SimpleVLA-RL, verl/workers/actor/dp_rob.py, `update_policy`): every
  trajectory takes the whole horizon, so that turns which were never played are forwarded and backwarded with an empty
  mask (here copies of the trajectory's last turn, there what the model said to a finished env), and every row is as
  long as the config admits (`episode.max_turn_tokens`), as verl pads to `max_prompt_length` and `max_response_length`.
- `longest`: only the turns that were played, padded to the longest row of the step, as TRL pads. The best that a loop
  does which neither sorts by length nor knows what a batch will hold.

Where there is a choice, it is made in favour of this baseline: no entropy is computed, pixels are preprocessed once a
step, and old log-probabilities cost a forward only where ours does one (SimpleVLA-RL always pays it).

Both count the same tokens: those of the turns that were played, context included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmark_result import Run
from rlvla.config import GRPOConfig, num_minibatches
from rlvla.learner import collate, loss
from rlvla.learner.collate import Batch, Row
from rlvla.policies.thinker import policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import Group

Scored = tuple[Batch, dict[str, torch.Tensor]]
"""A micro-batch and its forward inputs."""


def to_horizon(rows: Sequence[Row], horizon: int) -> list[Row]:
    """Fill every trajectory up to `horizon` turns with copies of its last, of which nothing is learned.

    Args:
        rows: trajectory after trajectory.
        horizon: turns of a trajectory.
    """
    filled: list[Row] = []
    for number in dict.fromkeys(row.trajectory for row in rows):
        turns = [row for row in rows if row.trajectory == number]
        idle = replace(turns[-1], loss_mask=np.zeros_like(turns[-1].loss_mask))
        filled += turns + [idle] * (horizon - len(turns))
    return filled


def widen(batch: Batch, length: int, pad_id: int) -> Batch:
    """Pad a batch on the right to `length` tokens."""
    missing = length - batch.input_ids.shape[1]

    def pad(tensor: torch.Tensor, value: int = 0) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (0, missing), value=value)

    return replace(
        batch,
        input_ids=pad(batch.input_ids, pad_id),
        attention_mask=pad(batch.attention_mask),
        loss_mask=pad(batch.loss_mask),
        segment_kind=pad(batch.segment_kind),
        sampler_logprobs=pad(batch.sampler_logprobs),
        weights=pad(batch.weights),
    )


def live_rows(groups: Sequence[Group], cfg: GRPOConfig) -> list[Row]:
    """The rows that ours learns from."""
    return collate.rows(groups, mask_context_full=cfg.mask_context_full)


class PaddedLearner:
    """Policy, reference and optimizer of the loop."""

    def __init__(self, cfg: GRPOConfig) -> None:
        self._cfg = cfg
        self._dtype = getattr(torch, cfg.learner.dtype)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._processor = PolicyProcessor.load(cfg.model)
        self._pad_id = self._processor.hf_processor.tokenizer.pad_token_id or 0
        learner = cfg.learner
        self._model = policy.load_to_train(
            cfg.model, self._dtype, lora=learner.lora, gradient_checkpointing=learner.gradient_checkpointing
        )
        self._model.to(self._device).train(learner.gradient_checkpointing)
        self._reference = None
        if cfg.loss.kl_coef:
            self._reference = policy.load_model(cfg.model, self._dtype).to(self._device).eval().requires_grad_(False)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay
        )

    def run_padded(self, groups: Sequence[Group], horizon: int) -> Run:
        """One step over the whole horizon of every trajectory, all rows at the longest length that is admitted."""
        rows = live_rows(groups, self._cfg)
        return self._timed(rows, to_horizon(rows, horizon), self._cfg.episode.max_turn_tokens)

    def run_longest(self, groups: Sequence[Group]) -> Run:
        """One step over the turns that were played, all rows at the length of the longest."""
        rows = live_rows(groups, self._cfg)
        return self._timed(rows, rows, max(len(row.token_ids) for row in rows))

    def _timed(self, live: Sequence[Row], rows: Sequence[Row], length: int) -> Run:
        started = time.perf_counter()
        self._step(rows, length)
        seconds = time.perf_counter() - started
        sampled = sum(row.num_sampled_tokens for row in rows)
        assert sampled == sum(row.num_sampled_tokens for row in live), "layouts must learn from the same tokens"
        return Run(
            seconds=seconds,
            counts={"tokens": sum(len(row.token_ids) for row in live)},
            facts={"rows": len(rows), "row_length": length},
        )

    def _step(self, rows: Sequence[Row], length: int) -> None:
        minibatches = [self._micro_batches(part, length) for part in self._minibatches(rows)]
        with_old = len(minibatches) * self._cfg.num_epochs > 1
        scored = [[self._score(batch, with_old) for batch in batches] for batches in minibatches]
        for _ in range(self._cfg.num_epochs):
            for batches in scored:
                self._update(batches)

    def _minibatches(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Whole trajectories, in order."""
        numbers = list(dict.fromkeys(row.trajectory for row in rows))
        parts = np.array_split(numbers, num_minibatches(len(numbers), self._cfg.minibatch_trajectories))
        return [[row for row in rows if row.trajectory in part] for part in (set(part.tolist()) for part in parts)]

    def _micro_batches(self, rows: Sequence[Row], length: int) -> list[Batch]:
        weights = loss.token_weights(
            torch.tensor([row.num_sampled_tokens for row in rows]),
            torch.tensor([row.trajectory for row in rows]),
            self._cfg.loss.average,
            self._cfg.loss.constant_length,
        )
        weighted = [replace(row, token_weight=w) for row, w in zip(rows, weights.tolist(), strict=True)]
        size = self._cfg.learner.micro_batch_rows
        parts = [weighted[i : i + size] for i in range(0, len(weighted), size)]
        return [widen(collate.to_batch(part, self._pad_id), length, self._pad_id) for part in parts]

    @torch.no_grad()
    def _score(self, batch: Batch, with_old: bool) -> Scored:
        inputs = self._processor.forward_inputs(
            batch.input_ids, batch.attention_mask, batch.is_act, batch.num_prefix_tokens
        )
        inputs |= self._processor.pixel_inputs(batch.images)
        inputs = {n: t.to(self._device, self._dtype if t.is_floating_point() else t.dtype) for n, t in inputs.items()}
        if self._reference is not None:
            batch = replace(batch, ref_logprobs=self._logprobs(self._reference, batch, inputs))
        if with_old:
            batch = replace(batch, old_logprobs=self._logprobs(self._model, batch, inputs))
        return batch.to(self._device), inputs

    def _logprobs(self, model: torch.nn.Module, batch: Batch, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        episode = self._cfg.episode
        temperatures = {"temperature": episode.temperature, "action_temperature": episode.action_temperature}
        return policy.token_logprobs(model, inputs, first=batch.first, **temperatures)[0]

    def _update(self, batches: Sequence[Scored]) -> None:
        """One optimizer step."""
        for batch, inputs in batches:
            logprobs = self._logprobs(self._model, batch, inputs)
            token_loss, _ = loss.grpo_token_loss(
                logprobs,
                old_logprobs=logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs,
                sampler_logprobs=batch.sampler_logprobs,
                ref_logprobs=batch.ref_logprobs,
                entropy=None,
                advantages=batch.advantages,
                mask=batch.loss_mask,
                cfg=self._cfg.loss,
            )
            (token_loss * batch.weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._cfg.learner.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
