"""A learner rank that runs four steps, or the last two of them from a state, for each way to train.

python -m tests.resume_worker RANK WORLD MASTER {unbroken,resumed} CHECKPOINT OUTPUT
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla.config import LoraConfig
from tests.learning import make_groups, make_learner, save_state, weights_of

LORA = LoraConfig(rank=4, alpha=8.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "full-zero0": {},
    "full-zero2": {"zero_stage": 2},
    "lora-zero0": {"lora": LORA},
    "lora-zero2": {"lora": LORA, "zero_stage": 2},
}
NUM_STEPS, SAVED_AFTER = 4, 2


def draw() -> list[float]:
    """Once from every global generator."""
    return [random.random(), random.gauss(), float(np.random.randn()), float(torch.rand(()))]


def run(phase: str, checkpoint: Path, output: Path, variant: str, **where: Any) -> None:
    """The steps of one variant; rank 0 writes what each returned, its own draws among that, and the weights."""
    options = {"schedule": "cosine", "minibatch_trajectories": 4, "num_epochs": 2, "seed": 7, **VARIANTS[variant]}
    learner = make_learner(checkpoint, **options, **where)
    state = output / "state" / variant
    is_resumed = phase == "resumed"
    if is_resumed:
        learner.load_state(state)
    steps = []
    for step in range(SAVED_AFTER if is_resumed else 0, NUM_STEPS):
        metrics = learner.step(make_groups(checkpoint, seed=step))
        timeless = {name: value for name, value in metrics.items() if not name.endswith("_s")}
        steps.append({"step": step, "draws": draw(), **timeless})
        if not is_resumed and step + 1 == SAVED_AFTER:
            save_state(learner, state)
    weights = weights_of(learner)
    learner.close()
    if where["rank"] == 0:
        (output / f"{phase}-{variant}.json").write_text(json.dumps(steps[-2:]))
        np.savez(output / f"{phase}-{variant}.npz", **weights)  # pyright: ignore[reportArgumentType]


def main(rank: int, world: int, master: str, phase: str, checkpoint: Path, output: Path) -> None:
    """All variants, one after another."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # ZeRO-2's buckets are 2 GB, filled in each step
    host, port = master.split(":")
    for i, variant in enumerate(VARIANTS):
        # A rank may come back for the next variant before the others have left the last one.
        address = f"{host}:{int(port) + i}"
        run(phase, checkpoint, output, variant, rank=rank, world=world, master=address)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], Path(sys.argv[5]), Path(sys.argv[6]))
