"""The learners that ours is compared with, each one update a step on the rows of our rollout, in one process.

**A plain torch loop over padded batches.** Same checkpoint, reference, objective (`grpo_token_loss`), scoring of tokens
(`token_logprobs`), AdamW, gradient clipping and rows per forward as ours, without DeepSpeed. Two ways to lay the rows
out, both in the order in which the rollout gave them:

- `padded`: as SimpleVLA-RL's learner (PRIME-RL/SimpleVLA-RL, verl/workers/actor/dp_rob.py, `update_policy`): every
  trajectory takes the whole horizon, so that turns which were never played are forwarded and backwarded with an empty
  mask (here copies of the trajectory's last turn, there what the model said to a finished env), and every row is as
  long as the config admits (`episode.max_turn_tokens`), as verl pads to `max_prompt_length` and `max_response_length`.
- `longest`: only the turns that were played, padded to the longest row of the step, as TRL pads. The best that a loop
  does which neither sorts by length nor knows what a batch will hold.

Where there is a choice, it is made in favour of this baseline: no entropy is computed, pixels are preprocessed once a
step, and there is no forward for old log-probabilities (SimpleVLA-RL always pays it).

**TRL's GRPO loss.** Its trainer owns its rollout loop, so that ours cannot be plugged in; what can be compared is the
update. The rows go to `GRPOTrainer.compute_loss` as its own rollout would hand them over (prompts padded on the left,
completions on the right, each to the longest of the step; tool results masked by `tool_mask`), with KL to its reference
model and DAPO's average over tokens. It knows no action slots: actions are scored like text, which is as much work.

All count the same tokens: those of the turns that were played, context included.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from measuring import Run
from rlvla.config import GRPOConfig
from rlvla.learner import collate, loss
from rlvla.learner.collate import Batch, Row
from rlvla.policies.thinker.drawing import to_device
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import Group, SegmentKind


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


def widen(batch: Batch, length: int) -> Batch:
    """Pad a batch on the right to `length` tokens."""
    missing = length - batch.loss_mask.shape[1]
    names = ("loss_mask", "segment_kind", "sampler_logprobs", "weights")
    return replace(batch, **{name: torch.nn.functional.pad(getattr(batch, name), (0, missing)) for name in names})


def widen_inputs(inputs: Mapping[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Pad what holds a number for each token on the right to `length` tokens."""
    shape = inputs["input_ids"].shape
    missing = (0, length - shape[1])
    return {n: torch.nn.functional.pad(t, missing) if t.shape == shape else t for n, t in inputs.items()}


class _Baseline:
    """What both have in common."""

    _model: Any

    def __init__(self, cfg: GRPOConfig) -> None:
        self._cfg = cfg
        self._dtype = getattr(torch, cfg.learner.dtype)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._policy = Thinker(PolicyProcessor.load(cfg.model))
        self._processor = self._policy.processor

    def _train(self, model: Any) -> None:
        learner = self._cfg.learner
        self._model = model.to(self._device)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay
        )

    def _live(self, groups: Sequence[Group]) -> list[Row]:
        """The rows that ours learns from."""
        return collate.rows(groups, mask_context_full=self._cfg.mask_context_full)

    def _timed(self, live: Sequence[Row], rows: Sequence[Row], *length: int) -> Run:
        sampled = sum(row.num_sampled_tokens for row in rows)
        assert sampled == sum(row.num_sampled_tokens for row in live), "layouts must learn from the same tokens"
        started = time.perf_counter()
        self._backward(rows, *length)
        torch.nn.utils.clip_grad_norm_(self._trained, self._cfg.learner.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        seconds = time.perf_counter() - started
        return Run(seconds=seconds, counts={"tokens": sum(row.num_tokens for row in live)}, facts={"rows": len(rows)})

    def _backward(self, rows: Sequence[Row], *length: int) -> None:
        raise NotImplementedError

    def _parts(self, rows: Sequence[Row]) -> list[Sequence[Row]]:
        size = self._cfg.learner.micro_batch_rows
        return [rows[start : start + size] for start in range(0, len(rows), size)]


class PaddedLearner(_Baseline):
    """Policy, reference and optimizer of the plain loop."""

    def __init__(self, cfg: GRPOConfig) -> None:
        super().__init__(cfg)
        self._train(self._policy.load_to_train(cfg.model, cfg.learner).train(cfg.learner.gradient_checkpointing))
        self._reference = None
        if cfg.loss.kl_coef:
            self._reference = self._policy.load_model(cfg.model, self._dtype).to(self._device).eval()

    def run_padded(self, groups: Sequence[Group], horizon: int) -> Run:
        """One step over the whole horizon of every trajectory, all rows at the longest length that is admitted."""
        live = self._live(groups)
        return self._timed(live, to_horizon(live, horizon), self._cfg.episode.max_turn_tokens)

    def run_longest(self, groups: Sequence[Group]) -> Run:
        """One step over the turns that were played, all rows at the length of the longest."""
        live = self._live(groups)
        return self._timed(live, live, max(row.num_tokens for row in live))

    def _backward(self, rows: Sequence[Row], *length: int) -> None:
        weights = loss.token_weights(
            torch.tensor([row.num_sampled_tokens for row in rows]),
            torch.tensor([row.trajectory for row in rows]),
            self._cfg.loss.average,
            self._cfg.loss.constant_length,
        )
        weighted = [replace(row, token_weight=w) for row, w in zip(rows, weights.tolist(), strict=True)]
        for part in self._parts(weighted):
            batch = widen(collate.to_batch(part), *length).to(self._device)
            inputs = widen_inputs(self._policy.inputs(batch.turns, self._device, self._dtype), *length)
            reference = None
            if self._reference is not None:
                with torch.no_grad():
                    reference = self._logprobs(self._reference, batch, inputs)
            logprobs = self._logprobs(self._model, batch, inputs)
            token_loss, _ = loss.grpo_token_loss(
                logprobs,
                old_logprobs=logprobs.detach(),
                sampler_logprobs=batch.sampler_logprobs,
                ref_logprobs=reference,
                entropy=None,
                advantages=batch.advantages,
                mask=batch.loss_mask,
                cfg=self._cfg.loss,
            )
            (token_loss * batch.weights).sum().backward()

    def _logprobs(self, model: torch.nn.Module, batch: Batch, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._policy.logprobs(model, inputs, self._cfg.episode, mask=batch.loss_mask)[0]


def measure_trl(
    cfg: GRPOConfig, measure: Callable[[Callable[[Sequence[Group]], Run]], list[Run]]
) -> tuple[list[Run], str]:
    """Measure, if TRL is there.

    Args:
        cfg: as ours.
        measure: calls the function it is given with the groups of each step.

    Returns:
        (runs, "") or ([], the reason why there are none).
    """
    if find_spec("trl") is None:
        return [], "trl is not installed: make setup"
    if cfg.learner.lora is not None:
        return [], "learner.lora is set: only full fine-tuning is compared"
    with tempfile.TemporaryDirectory() as folder:
        return measure(_TRLLearner(cfg, folder).run), ""


class _TRLLearner(_Baseline):
    """A GRPOTrainer whose rollout and data set are never used."""

    def __init__(self, cfg: GRPOConfig, folder: str) -> None:
        import datasets

        super().__init__(cfg)
        warnings.filterwarnings("ignore", category=UserWarning, module="trl")  # its own vLLM is not used
        from trl.trainer.grpo_trainer import GRPOTrainer

        self._trainer: Any = GRPOTrainer(
            model=self._policy.load_model(cfg.model, self._dtype),
            args=_arguments(cfg, folder),
            reward_funcs=lambda **_: [],
            train_dataset=datasets.Dataset.from_list([{"prompt": "none"}] * cfg.group_size),
            processing_class=self._processor.hf_processor,
        )
        self._trainer.current_gradient_accumulation_steps = 1  # `Trainer.train` would set it
        self._train(self._trainer.model.train())
        if self._trainer.ref_model is not None:
            self._trainer.ref_model.to(self._device)

    def run(self, groups: Sequence[Group]) -> Run:
        """One update from the rows of a step."""
        live = self._live(groups)
        prompts = [_prompt_length(row) for row in live]
        completions = [row.num_tokens - prompt for row, prompt in zip(live, prompts, strict=True)]
        return self._timed(live, live, max(prompts), max(completions))

    def _backward(self, rows: Sequence[Row], *length: int) -> None:
        num_tokens = torch.tensor(sum(row.num_sampled_tokens for row in rows), device=self._device)
        for part in self._parts(rows):
            inputs = self._inputs(part, *length) | {"num_items_in_batch": num_tokens}
            if self._trainer.ref_model is not None:
                inputs["ref_per_token_logps"] = self._reference_logprobs(inputs)
            self._trainer.accelerator.backward(self._trainer.compute_loss(self._model, inputs))

    @torch.no_grad()
    def _reference_logprobs(self, inputs: dict[str, Any]) -> torch.Tensor:
        names = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "num_images", "mm_token_type_ids")
        logprobs, *_ = self._trainer._get_per_token_logps_and_entropies(
            self._trainer.ref_model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            **{name: inputs[name] for name in names if name in inputs},
        )
        return logprobs

    def _inputs(self, rows: Sequence[Row], prompt_length: int, completion_length: int) -> dict[str, Any]:
        """What `compute_loss` takes."""
        shape = (len(rows), prompt_length + completion_length)
        pad_id = self._processor.hf_processor.tokenizer.pad_token_id or 0
        ids, mask, tool_mask = np.full(shape, pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            start = prompt_length - _prompt_length(row)
            place = slice(start, start + row.num_tokens)
            ids[i, place], mask[i, place], tool_mask[i, place] = row.turn.token_ids, 1, row.loss_mask
        tensors = {name: torch.from_numpy(array) for name, array in (("ids", ids), ("mask", mask))}
        inputs = {f"prompt_{name}": tensor[:, :prompt_length] for name, tensor in tensors.items()}
        inputs |= {f"completion_{name}": tensor[:, prompt_length:] for name, tensor in tensors.items()}
        inputs["tool_mask"] = torch.from_numpy(tool_mask)[:, prompt_length:]
        inputs |= self._processor.pixel_inputs([row.turn.images for row in rows])
        no_acts = torch.zeros(shape, dtype=torch.bool)
        extra = self._processor.forward_inputs(tensors["ids"], tensors["mask"], no_acts)
        inputs |= {name: extra[name] for name in ("mm_token_type_ids",) if name in extra}
        advantages = torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=self._device)
        moved = to_device(inputs, self._device, self._dtype)
        return {**moved, "advantages": advantages, "num_images": [len(row.turn.images) for row in rows]}


def _prompt_length(row: Row) -> int:
    return next(s.start for s in row.turn.segments if s.kind is not SegmentKind.PROMPT)


def _arguments(cfg: GRPOConfig, folder: str) -> Any:
    from trl.trainer.grpo_config import GRPOConfig as Arguments

    return Arguments(
        output_dir=folder,
        per_device_train_batch_size=cfg.group_size,
        num_generations=cfg.group_size,
        gradient_accumulation_steps=1,
        gradient_checkpointing=cfg.learner.gradient_checkpointing,
        bf16=False,  # the weights have the configured type, as in ours
        use_cpu=not torch.cuda.is_available(),
        temperature=cfg.episode.temperature,
        beta=cfg.loss.kl_coef,
        epsilon=cfg.loss.clip_low,
        epsilon_high=cfg.loss.clip_high,
        loss_type="dapo",
        seed=cfg.seed,
        report_to="none",
    )
