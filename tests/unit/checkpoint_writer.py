"""Writes checkpoints until it is killed: python -m tests.unit.checkpoint_writer FOLDER FIRST_STEP."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from rlvla.durable.sealed import appear_sealed

NUM_FILES = 12
SIZE = 200_000


def content(step: int, number: int) -> bytes:
    """What file `number` of the checkpoint of `step` holds: SIZE bytes."""
    return bytes([step % 256, number]) * (SIZE // 2)


if __name__ == "__main__":
    states, first = Path(sys.argv[1]), int(sys.argv[2])
    for step in itertools.count(first):
        with appear_sealed(states / f"step-{step:06d}") as folder:
            for number in range(NUM_FILES):
                (folder / f"rank_{number}.pt").write_bytes(content(step, number))
        print(step, flush=True)
