"""What an exact resume needs of a learner rank: written, or written aside while the rank goes on, and loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from rlvla.durable.random_state import random_state, set_random_state

_ZERO_STATE = ("base_optimizer_state", "single_partition_of_fp32_groups", "optimizer_state_dict", "fp32_flat_groups")
"""The entries of a ZeRO optimizer's state that change while it trains (stage 2: the first two, stage 3: the others)."""


class State:
    """Trained weights, optimizer, random state and the caller's counters of a rank; a file of its own for each rank.

    Args:
        trained: weights by name.
        optimizer: DeepSpeed's, or torch's where ZeRO is off.
        zero_stage: 0, 2 or 3.
        rank: of this process.
        world: number of ranks.
    """

    def __init__(
        self, trained: Mapping[str, torch.nn.Parameter], optimizer: Any, *, zero_stage: int, rank: int, world: int
    ) -> None:
        self._trained, self._optimizer = trained, optimizer
        self._is_plain = isinstance(optimizer, torch.optim.Optimizer)
        self._stage, self._rank, self._world = zero_stage, rank, world
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing = self._pool.submit(dict[str, int])
        self.waited_s = 0.0
        """What `wait_until_written` has taken so far, seconds."""

    def save(self, folder: Path, counters: Mapping[str, int]) -> None:
        """Write it; returns when every rank has."""
        self.begin(folder, counters)
        self.finish()
        torch.distributed.barrier()

    def begin(self, folder: Path, counters: Mapping[str, int]) -> None:
        """Begin to write it in a thread, as it is now.

        Nothing is copied. What changes it waits until it is written: `Engine.step`, the only one in a run, and `load`.
        """
        self.wait_until_written()
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {"world": self._world, "zero_stage": self._stage}
        state |= {"random": random_state(), "counters": dict(counters)}
        if torch.cuda.is_available():
            state["random"]["cuda"] = torch.cuda.get_rng_state()
        if self._stage == 3:
            state["trained"] = {}  # the optimizer's float32 shares are the weights
        else:
            state["trained"] = {name: p.detach() for name, p in self._trained.items()}
        optimizer = self._optimizer.state_dict()
        state["optimizer"] = optimizer if self._is_plain else {k: optimizer[k] for k in _ZERO_STATE if k in optimizer}
        self._writing = self._pool.submit(_write, state, self._file(folder))

    def finish(self) -> dict[str, int]:
        """Wait until it is written; {its file: bytes}. Raises what kept it from being written. From any thread."""
        return self._writing.result()

    def wait_until_written(self) -> None:
        """What went wrong meanwhile is for `finish` to say."""
        started = time.perf_counter()
        wait([self._writing])
        self.waited_s += time.perf_counter() - started

    def load(self, folder: Path) -> dict[str, int]:
        """Go on exactly where it was begun to be written; returns its counters.

        Raises:
            FileNotFoundError: no state for this rank.
            ValueError: it was saved with another number of ranks, another ZeRO stage, or other trained weights.
        """
        self.wait_until_written()
        file = self._file(folder)
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {folder} holds no learner state for rank {self._rank}")
        state = torch.load(file, map_location="cpu", weights_only=True)
        for key, now in (("world", self._world), ("zero_stage", self._stage)):
            if state[key] != now:
                raise ValueError(
                    f"{file} was saved with {key} {state[key]}, this run has {now}: resume with the former"
                )
        if self._stage != 3 and (other := sorted(state["trained"].keys() ^ self._trained.keys())):
            raise ValueError(
                f"{file} was saved by a run that trains other weights, such as {other[0]} ({len(other)} differ): go on "
                "with the version of rlvla that wrote it, or name another output folder"
            )
        with torch.no_grad():
            for name, weight in state["trained"].items():
                self._trained[name].copy_(weight)
        if self._is_plain:
            self._optimizer.load_state_dict(state["optimizer"])
        else:  # the rest (layout, loss scaler objects) is as at construction; DeepSpeed picks this rank's entry
            by_rank = {self._rank: {**self._optimizer.state_dict(), **state["optimizer"]}}
            self._optimizer.load_state_dict(by_rank, load_optimizer_states=True, load_from_fp32_weights=True)
        set_random_state(state["random"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"])
        return state["counters"]

    def _file(self, folder: Path) -> Path:
        return folder / f"rank_{self._rank}.pt"


def _write(state: Mapping[str, Any], file: Path) -> dict[str, int]:
    torch.save(state, file)
    return {file.name: file.stat().st_size}
