"""TRL's GRPO step on the tokens of our rollout: its loss and its scoring, fed with our rows.

TRL's trainer owns its rollout loop, so that ours cannot be plugged in; what can be compared is the update. The rows go
to `GRPOTrainer.compute_loss` as its own rollout would hand them over (prompts padded on the left, completions on the
right, each to the longest of the step; tool results masked by `tool_mask`), with KL to its reference model and DAPO's
average over tokens. Minibatches are not shuffled. Each runs in forwards of `learner.micro_batch_rows` rows.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmark_padded import live_rows
from benchmark_result import Run
from rlvla.config import GRPOConfig
from rlvla.learner.collate import KINDS, Row
from rlvla.policies.thinker import policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import Group, SegmentKind


def measure_trl(
    cfg: GRPOConfig, measure: Callable[[Callable[[Sequence[Group]], Run]], list[Run]]
) -> tuple[list[Run], str]:
    """Measure, if TRL is there and takes our rows.

    Args:
        cfg: as ours.
        measure: calls the function it is given with the groups of each step.

    Returns:
        (runs, "") or ([], the reason why there are none).
    """
    if reason := _unsupported(cfg):
        return [], reason
    try:
        with tempfile.TemporaryDirectory() as folder:
            return measure(_TRLLearner(cfg, folder).run), ""
    except ImportError as error:
        return [], f"TRL does not import here: {error}"
    except Exception as error:  # TRL's internals move with its versions; the other measurements stand
        logging.getLogger(__name__).warning("TRL failed", exc_info=error)
        return [], f"TRL failed: {type(error).__name__}: {error}"


def _unsupported(cfg: GRPOConfig) -> str:
    if cfg.learner.lora is not None:
        return "learner.lora is set: only full fine-tuning is compared"
    if cfg.num_epochs > 1 or cfg.minibatches_per_step > 1:
        return "more than one update a step: TRL would need its old log-probabilities from its own rollout"
    return ""


class _TRLLearner:
    """A GRPOTrainer whose rollout and data set are never used."""

    def __init__(self, cfg: GRPOConfig, folder: str) -> None:
        import datasets

        warnings.filterwarnings("ignore", category=UserWarning, module="trl")  # its own vLLM is not used
        from trl import GRPOTrainer

        self._cfg = cfg
        self._dtype = getattr(torch, cfg.learner.dtype)
        self._processor = PolicyProcessor.load(cfg.model)
        self._trainer: Any = GRPOTrainer(
            model=policy.load_to_train(cfg.model, self._dtype),
            args=_arguments(cfg, folder),
            reward_funcs=_no_reward,
            train_dataset=datasets.Dataset.from_list([{"prompt": "none"}] * cfg.group_size),
            processing_class=self._processor.hf_processor,
        )
        trainer = self._trainer
        self._device = trainer.accelerator.device
        trainer.current_gradient_accumulation_steps = 1  # `Trainer.train` would set it
        self._model = trainer.model.to(self._device).train()
        if trainer.ref_model is not None:
            trainer.ref_model.to(self._device)
        learner = cfg.learner
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay
        )

    def run(self, groups: Sequence[Group]) -> Run:
        """One update from the rows of a step."""
        rows = live_rows(groups, self._cfg)
        started = time.perf_counter()
        self._step(rows)
        seconds = time.perf_counter() - started
        return Run(seconds=seconds, counts={"tokens": sum(len(row.token_ids) for row in rows)})

    def _step(self, rows: Sequence[Row]) -> None:
        lengths = _longest(rows)
        num_tokens = torch.tensor(sum(row.num_sampled_tokens for row in rows), device=self._device)
        size = self._cfg.learner.micro_batch_rows
        for start in range(0, len(rows), size):
            inputs = self._inputs(rows[start : start + size], *lengths) | {"num_items_in_batch": num_tokens}
            if self._trainer.ref_model is not None:
                inputs["ref_per_token_logps"] = self._reference_logprobs(inputs)
            self._trainer.accelerator.backward(self._trainer.compute_loss(self._model, inputs))
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._cfg.learner.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def _reference_logprobs(self, inputs: dict[str, Any]) -> torch.Tensor:
        pixels = {n: t for n, t in inputs.items() if n in ("pixel_values", "pixel_attention_mask", "image_grid_thw")}
        more = {name: inputs[name] for name in ("num_images", "mm_token_type_ids") if name in inputs}
        logprobs, *_ = self._trainer._get_per_token_logps_and_entropies(
            self._trainer.ref_model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            **pixels,
            **more,
        )
        return logprobs

    def _inputs(self, rows: Sequence[Row], prompt_length: int, completion_length: int) -> dict[str, Any]:
        """What `compute_loss` takes."""
        pad_id = self._processor.hf_processor.tokenizer.pad_token_id or 0
        shape = (len(rows), prompt_length + completion_length)
        ids, mask, tool_mask = np.full(shape, pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            start = prompt_length - _prompt_length(row)
            place = slice(start, start + len(row.token_ids))
            ids[i, place], mask[i, place], tool_mask[i, place] = row.token_ids, 1, row.loss_mask
        tensors = {name: torch.from_numpy(array) for name, array in (("ids", ids), ("mask", mask))}
        prompt = {f"prompt_{name}": tensor[:, :prompt_length] for name, tensor in tensors.items()}
        completion = {f"completion_{name}": tensor[:, prompt_length:] for name, tensor in tensors.items()}
        inputs: dict[str, Any] = prompt | completion
        inputs["tool_mask"] = torch.from_numpy(tool_mask)[:, prompt_length:]
        inputs["advantages"] = torch.tensor([row.advantage for row in rows], dtype=torch.float32)
        inputs |= self._processor.pixel_inputs([row.images for row in rows])
        extra = self._processor.forward_inputs(tensors["ids"], tensors["mask"])
        inputs |= {name: extra[name] for name in ("mm_token_type_ids",) if name in extra}
        moved = {n: t.to(self._device, self._dtype if n == "pixel_values" else t.dtype) for n, t in inputs.items()}
        return moved | {"num_images": [len(row.images) for row in rows]}


def _longest(rows: Sequence[Row]) -> tuple[int, int]:
    """Longest prompt and longest completion, tool results included, in tokens."""
    prompts = [_prompt_length(row) for row in rows]
    return max(prompts), max(len(row.token_ids) - p for row, p in zip(rows, prompts, strict=True))


def _prompt_length(row: Row) -> int:
    return int(np.argmax(row.segment_kind != KINDS.index(SegmentKind.PROMPT)))


def _no_reward(**_: Any) -> list[float]:
    raise RuntimeError("the rollout of TRL's trainer is not used here")


def _arguments(cfg: GRPOConfig, folder: str) -> Any:
    import trl

    return trl.GRPOConfig(
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
