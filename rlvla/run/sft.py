"""Supervised fine-tuning through accelerate with its DeepSpeed plugin, so that `accelerate launch` scales it."""

from __future__ import annotations

import itertools
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from accelerate import Accelerator, DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from rlvla.config import SFTConfig, write_resolved
from rlvla.data.dataset import DemonstrationSet
from rlvla.durable.files import aside_of, sync_lines, write_json
from rlvla.durable.interrupts import Interrupts
from rlvla.durable.sealed import appear_sealed, forget_old, newest_whole, require_seen, seen
from rlvla.learner.collate import Row, to_batch, to_row
from rlvla.learner.engine import DTYPES, deepspeed_config, meet, poisoned, skip_compilation, update  # names the CPU
from rlvla.learner.learner import learning_rate
from rlvla.learner.master_weights import keeping_masters, masters
from rlvla.policies.family import Policy
from rlvla.policies.weights import has_adapter, holding
from rlvla.run import identity
from rlvla.run.evaluation import evaluate, line
from rlvla.run.metrics import MetricsLogger
from rlvla.run.skipping import SkipCount


class SFTTrainer:
    """Model, optimizer and data of a cold start, on one of any number of processes."""

    def __init__(self, cfg: SFTConfig, model: Any, policy: Policy, demonstrations: DemonstrationSet) -> None:
        """Raises ValueError when the batch does not divide over the processes."""
        skip_compilation()
        self.cfg = cfg
        self.policy = policy
        self._demonstrations = demonstrations
        self._train, self._validation = split(demonstrations.episode_index, cfg.validation_share, cfg.seed)
        self.accelerator = _accelerator(cfg)
        world = self.accelerator.num_processes
        if cfg.batch_size % world:
            raise ValueError(f"batch_size {cfg.batch_size} does not divide over {world} processes")
        learner = cfg.learner
        model = policy.prepare(model, learner, start=cfg.model)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adamw = torch.optim.AdamW(
            self._trained.values(),
            lr=learner.lr,
            betas=learner.betas,
            weight_decay=learner.weight_decay,
        )
        with keeping_masters(self._trained):
            self.model, _ = self.accelerator.prepare(model.train(), self._adamw)
        policy.check(self.model)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the `step`-th batch; skipped where loss or gradient is not finite."""
        started = time.perf_counter()
        lr = learning_rate(self.cfg.learner, step, self.cfg.num_steps)
        for group in self._adamw.param_groups:  # a state that was resumed from may hold that of another config
            group["lr"] = lr
        rows = self._rows(self.batch(step))
        num_tokens = self._sum(sum(row.num_sampled_tokens for row in rows))
        total = 0.0
        for i, micro in enumerate(_micro_batches(rows, self._num_micro_batches)):
            loss = poisoned(self._token_losses(micro).sum())
            self.model.set_gradient_accumulation_boundary(i == self._num_micro_batches - 1)
            # DeepSpeed averages over processes; the objective is a sum over tokens, divided by their number.
            self.model.backward(loss * (self.accelerator.num_processes / num_tokens), scale_wrt_gas=False)
            total += float(loss.detach())
        grad_norm = update(self.model, self._trained.values(), self.cfg.learner.max_grad_norm)
        seconds = time.perf_counter() - started
        return {
            "loss": self._sum(total) / num_tokens,
            "lr": lr,
            "tokens_per_s": num_tokens / seconds,
            "skipped_updates": float(not math.isfinite(grad_norm)),
        }

    def batch(self, step: int) -> np.ndarray:
        """The rows of the data set that a step learns from; they depend on nothing but the seed and the step."""
        return batch_indices(self._train, self.cfg.batch_size, step, self.cfg.seed)

    def of_all(self, said: Any) -> list[Any]:
        """What each process says; every one must say something."""
        return gather_object([said])

    def is_any(self, claim: bool) -> bool:
        """Whether any process says so; every one must ask."""
        return bool(self._sum(claim))

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of a sampled token on episodes that are not trained on."""
        self.model.eval()
        rows = self._rows(self._validation)
        ranks, micro_batch_rows = self.accelerator.num_processes, self.cfg.learner.micro_batch_rows
        num_batches = math.ceil(len(self._validation) / ranks / micro_batch_rows)
        # In ZeRO-3 a forward gathers weights from all processes: one that has no rows left goes along with any row.
        any_row = self._rows_at(self._validation[:1])
        total = 0.0
        for part in _micro_batches(rows, num_batches):
            loss = float(self._token_losses(part or any_row).sum())
            total += loss if part else 0.0
        num_tokens = self._sum(sum(row.num_sampled_tokens for row in rows))
        self.model.train()
        return self._sum(total) / num_tokens

    def save(self, path: Path) -> None:
        """Write the policy in Hugging Face format, an adapter beside it in float32."""
        module: Any = self.accelerator.unwrap_model(self.model)
        exact = masters(self._trained) if has_adapter(module) else {}
        with (
            deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=self.cfg.learner.zero_stage == 3),
            holding(module, exact),
        ):
            if self.accelerator.is_main_process:
                self.policy.save(module, path)
        self.accelerator.wait_for_everyone()

    def save_state(self, path: Path) -> None:
        """Write all that a resume needs; every process must call."""
        self.accelerator.save_state(str(path))
        self.accelerator.wait_for_everyone()

    @property
    def _num_micro_batches(self) -> int:
        rows = self.cfg.batch_size // self.accelerator.num_processes
        return math.ceil(rows / self.cfg.learner.micro_batch_rows)

    def _rows(self, indices: np.ndarray) -> list[Row]:
        """This process's share of some rows of the data set."""
        return self._rows_at(indices[self.accelerator.process_index :: self.accelerator.num_processes])

    def _rows_at(self, indices: np.ndarray) -> list[Row]:
        return [to_row(self.policy.to_turn(self._demonstrations[i])) for i in indices]

    def _token_losses(self, rows: Sequence[Row]) -> torch.Tensor:
        batch = to_batch(rows).to(self.accelerator.device)
        inputs = self.policy.inputs(batch.turns, self.accelerator.device, DTYPES[self.cfg.learner.dtype])
        return self.policy.sft_losses(self.model, inputs, batch.loss_mask, batch.first)

    def _sum(self, value: float) -> float:
        tensor = torch.tensor(float(value), dtype=torch.float64, device=self.accelerator.device)
        total: Any = self.accelerator.reduce(tensor, "sum")
        return float(total)


class SFTRun:
    """The output folder of a cold start: config, metrics, states to resume from, the checkpoint, its success."""

    def __init__(self, cfg: SFTConfig, trainer: SFTTrainer) -> None:
        self._cfg = cfg
        self._trainer = trainer
        self._is_main = trainer.accelerator.is_main_process
        self._validation_loss: float | None = None
        self._skipped = SkipCount(cfg.learner.max_skipped_steps)
        self._started = time.perf_counter()

    def __enter__(self) -> SFTRun:
        if self._is_main:
            identity.note(self._cfg)
            write_resolved(self._cfg, self._cfg.output)
            self._logger = MetricsLogger(self._cfg.output, self._cfg.log)
        self._bar = tqdm(total=self._cfg.num_steps, desc="sft", unit="step", disable=not self._is_main, mininterval=2)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._is_main:
            self._logger.close()

    def resume(self) -> int:
        """Go on from the newest state, if there is one; returns the first step to run."""
        # One process looks for all: the others would read every byte again, and might find another state.
        newest = [newest_whole(self._cfg.output / "state") if self._is_main else None]
        newest = broadcast_object_list(newest)[0]
        if newest is None:
            return 0
        step, folder = newest
        self._trainer.accelerator.load_state(str(folder))
        if self._is_main:
            self._logger.rewind(step)
        return step

    def progress(self, first: int) -> Iterator[int]:
        """The steps from `first` on, shown as a bar."""
        self._bar.update(first)
        for step in range(first, self._cfg.num_steps):
            yield step
            self._bar.update()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write a step's metrics; every `validate_every` steps and at the end with the validation loss."""
        if self._is_due(step, self._cfg.validate_every):
            self._validation_loss = self._trainer.validate()
            metrics = {**metrics, "validation_loss": self._validation_loss}
        if self._is_main:
            self._logger.log(step, metrics)
        self._guard(step, metrics)
        shown = {"loss": metrics["loss"], "validation": self._validation_loss}
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items() if value is not None})

    def keep(self, step: int, interrupts: Interrupts) -> None:
        """Save a state to resume from, when it is due or a signal asks any process to end.

        Raises:
            KeyboardInterrupt: on all processes, in the latter case.
        """
        is_asked = step + 1 < self._cfg.num_steps and self._trainer.is_any(interrupts.is_asked)
        is_due = bool(self._cfg.save_every) and (step + 1) % self._cfg.save_every == 0
        if is_due or is_asked:
            self._save(step)
        if is_asked:
            tqdm.write(f"stopped behind step {step}: run the same command again to go on from there", sys.stderr)
            raise KeyboardInterrupt

    def _save(self, step: int) -> None:
        """A state to resume from, which appears whole."""
        if self._is_main:
            sync_lines(self._cfg.output)
        self._together(self._cfg.output / "state" / f"step-{step + 1:06d}", self._trainer.save_state)
        if self._is_main:
            forget_old(self._cfg.output / "state", self._cfg.keep_states, written=step + 1)

    def _together(self, path: Path, write: Callable[[Path], None]) -> None:
        """Let all processes write into one folder, which then appears whole under its name."""
        accelerator = self._trainer.accelerator

        def write_together(aside: Path) -> None:
            accelerator.wait_for_everyone()
            write(aside)
            accelerator.wait_for_everyone()
            who = f"rank {accelerator.process_index} on {socket.gethostname()}"
            require_seen(aside, dict(self._trainer.of_all((who, seen(aside)))))
            accelerator.wait_for_everyone()  # before the main process renames what the others look at

        if not self._is_main:
            write_together(aside_of(path))
            return
        with appear_sealed(path) as aside:
            write_together(aside)

    def _guard(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep which rows a skipped update was to learn from; too many in a row end the run, on all processes."""
        if not metrics["skipped_updates"]:
            self._skipped.forget()
            return
        file = self._cfg.output / f"bad_step_{step}.json"
        if self._is_main:
            write_json(file, {"dataset": str(self._cfg.dataset), "rows": self._trainer.batch(step).tolist()})
        self._skipped.add(step, file)

    def finish(self, interrupts: Interrupts) -> None:
        """Write the checkpoint and `summary.json`, with success on held-out states when `num_trials` asks for it.

        Raises:
            KeyboardInterrupt: in the evaluation; the checkpoint is there by then.
        """
        cfg = self._cfg
        if self._validation_loss is None:  # resumed behind the last step
            self._validation_loss = self._trainer.validate()
        self._together(cfg.output / "checkpoint", self._trainer.save)
        if not self._is_main:
            return
        (cfg.output / "summary.json").unlink(missing_ok=True)  # it tells of the checkpoint before
        summary: dict[str, Any] = {
            "steps": cfg.num_steps,
            "validation_loss": self._validation_loss,
            "minutes": round((time.perf_counter() - self._started) / 60, 2),
            "checkpoint": "checkpoint",
        }
        if cfg.num_trials:
            with interrupts.immediate():
                summary["evaluation"] = evaluate(cfg.evaluation, starts_over=True)
            tqdm.write(line("all", summary["evaluation"]))
        write_json(cfg.output / "summary.json", summary)

    def _is_due(self, step: int, every: int) -> bool:
        return (step + 1) % every == 0 or step + 1 == self._cfg.num_steps


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


def _accelerator(cfg: SFTConfig) -> Accelerator:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(cfg.learner))
    if "LOCAL_RANK" not in os.environ:  # not under `accelerate launch`: a world of one
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        meet(backend, "127.0.0.1", 0)  # on loopback alone, which accelerate would not
    # accelerate turns DeepSpeed off when told `cpu`; without a GPU it takes the CPU by itself, but for the backend.
    accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend=backend)])
    if accelerator.distributed_type is not DistributedType.DEEPSPEED:
        raise RuntimeError(
            f"accelerate chose {accelerator.distributed_type}, not DeepSpeed: look at its launch options"
        )
    return accelerator
