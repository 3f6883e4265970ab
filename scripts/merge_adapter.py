"""Merge the LoRA adapter of a checkpoint into its weights: python scripts/merge_adapter.py CHECKPOINT OUTPUT.

Needed before all weights are trained further, or another adapter. Rounding loses what is smaller than a weight's last
bit; how much that is of the adapter is printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import tyro

from rlvla.durable.checkpoints import appear_sealed
from rlvla.policies.models import auto
from rlvla.policies.models.lora import merge_down, read_config
from rlvla.policies.thinker.policy import save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import base_model, load_model


def merge_checkpoint(checkpoint: Path, output: Path, dtype: torch.dtype | None = None) -> float:
    """Write a checkpoint without an adapter that acts alike.

    Args:
        checkpoint: folder with an adapter.
        output: folder to write.
        dtype: of its weights; None: as they are.

    Returns:
        Share of the adapted weights that rounding left as they were.

    Raises:
        ValueError: there is no adapter.
    """
    if read_config(checkpoint) is None:
        raise ValueError(f"{checkpoint} holds no adapter: there is nothing to merge")
    if output.exists():
        raise FileExistsError(f"{output} exists: name a new folder")
    model = load_model(checkpoint, dtype or auto.load_config(checkpoint).dtype or torch.float32)
    base = base_model(model)
    unchanged = merge_down(model)
    with appear_sealed(output) as aside:
        save_policy(base, PolicyProcessor.load(checkpoint), aside)
    return unchanged


def main(checkpoint: Path, output: Path, /, *, dtype: Literal["float32", "bfloat16"] | None = None) -> None:
    """Merge, say what was lost.

    Args:
        checkpoint: folder with an adapter.
        output: folder to write.
        dtype: of the weights; default: as they are.
    """
    unchanged = merge_checkpoint(checkpoint, output, dtype and getattr(torch, dtype))
    print(f"{output}: rounding left {unchanged:.1%} of the adapted weights as they were")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
