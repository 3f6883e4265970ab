"""The end of a cold start, with a trainer of which only the files are there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlvla.checkpoint import damage
from rlvla.config import SFTConfig
from rlvla.sft import SFTRun


class Trainer:
    """One process, which has nothing to learn any more."""

    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)

    def validate(self) -> float:
        return 0.25

    def save(self, path: Path) -> None:
        (path / "model.safetensors").touch()


def test_a_run_resumed_behind_its_last_step_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """Its last validation is in no state."""
    trainer: Any = Trainer()
    interrupts: Any = None  # for the evaluation, which is not asked for
    SFTRun(SFTConfig(output=tmp_path, num_steps=3), trainer).finish(interrupts)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["validation_loss"]) == (3, 0.25)
    assert damage(tmp_path / "checkpoint") == ""
