"""The output folder of a cold start: config, metrics, states to resume from, the checkpoint, its success."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from rlvla.config import SFTConfig
from rlvla.durable.checkpoints import appear_sealed, aside_of, newest_whole, require_seen, seen
from rlvla.durable.files import write_json
from rlvla.durable.interrupts import Interrupts
from rlvla.learner.sft import SFTTrainer
from rlvla.run.base import Run
from rlvla.run.evaluation import evaluate, line


class SFTRun(Run[SFTConfig]):
    """A run of any number of ranks, of which the first writes what is not a rank's own.

    Args:
        cfg: of the run.
        trainer: of this rank.
        interrupts: around the run.
    """

    _name = "sft"

    def __init__(self, cfg: SFTConfig, trainer: SFTTrainer, interrupts: Interrupts) -> None:
        super().__init__(cfg, interrupts, is_main=trainer.engine.rank == 0)
        self._trainer = trainer
        self._engine = trainer.engine
        self._validation_loss: float | None = None

    def steps(self) -> Iterator[int]:
        """The steps that are left, from the newest whole state on; behind each, a state when it is due.

        From here on a signal ends the run behind a step, with a KeyboardInterrupt on all ranks.
        """
        self._interrupts.defer()
        # One rank looks for all: the others would read every byte again, and might find another state.
        newest, *_ = self._engine.gather(newest_whole(self._output / "state") if self._is_main else None)
        if newest is None:
            return self._progress(0)
        first, folder = newest
        self._engine.state.load(folder)
        if self._is_main:
            self._logger.rewind(first)
        return self._progress(first)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write a step's metrics; every `validate_every` steps and at the end with the validation loss.

        Raises:
            FloatingPointError: on all ranks, when too many steps in a row skipped their update.
        """
        if (step + 1) % self._cfg.validate_every == 0 or step + 1 == self._cfg.num_steps:
            self._validation_loss = self._trainer.validate()
            metrics = {**metrics, "validation_loss": self._validation_loss}
        self._log(step, metrics, shown=("loss", "validation_loss"))
        file = self._output / f"bad_step_{step}.json" if metrics["skipped_updates"] else None
        if file is not None and self._is_main:
            write_json(file, {"dataset": str(self._cfg.dataset), "rows": self._trainer.batch(step).tolist()})
        self._count_skipped(step, file)

    def _keep(self, step: int) -> None:
        """Save a state when it is due, or when a signal asks any rank to end, and then end."""
        is_asked = step + 1 < self._cfg.num_steps and any(self._engine.gather(self._interrupts.is_asked))
        if self._is_due(step) or is_asked:
            self._save_state(step + 1)
        if is_asked:
            tqdm.write(f"stopped behind step {step}: run the same command again to go on from there", sys.stderr)
            raise KeyboardInterrupt

    def _save_state(self, step: int) -> None:
        """Write the state of before `step`; interrupted at any moment, it is not there."""
        if self._is_main:
            self._sync_lines()
        self._write(self._state_folder(step), lambda folder: self._engine.state.save(folder, counters={}))
        if self._is_main:
            self._forget_states(step)

    def _write(self, path: Path, fill: Callable[[Path], None]) -> None:
        """Let all ranks fill one folder, which then appears whole under its name."""

        def fill_together(aside: Path) -> None:
            self._engine.gather(None)  # the folder is there
            fill(aside)
            who = f"rank {self._engine.rank} on {socket.gethostname()}"
            written = self._engine.gather((who, seen(aside)))
            require_seen(aside, dict(written))
            self._engine.gather(None)  # before the first rank renames what the others look at

        if self._is_main:
            with appear_sealed(path) as folder:
                fill_together(folder)
        else:
            fill_together(aside_of(path))

    def finish(self) -> None:
        """Write the checkpoint and `summary.json`, with success on held-out states when `num_trials` asks for it.

        Raises:
            KeyboardInterrupt: in the evaluation; the checkpoint is there by then.
        """
        if self._validation_loss is None:  # resumed behind the last step
            self._validation_loss = self._trainer.validate()
        self._write(self._output / "checkpoint", self._trainer.save)
        if not self._is_main:
            return
        (self._output / "summary.json").unlink(missing_ok=True)  # it tells of the checkpoint before
        summary = self._summary(validation_loss=self._validation_loss)
        if self._cfg.num_trials:
            with self._interrupts.immediate():
                summary["evaluation"] = evaluate(self._cfg.evaluation, starts_over=True)
            tqdm.write(line("all", summary["evaluation"]))
        write_json(self._output / "summary.json", summary)
