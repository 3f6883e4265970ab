"""The Ray actor that holds a learner rank."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from rlvla.cluster.carried import Carried, located
from rlvla.config import GRPOConfig
from rlvla.durable.checkpoints import seen
from rlvla.policies.buckets import Bucket, Weights


class LearnerActor:
    """One DeepSpeed rank as a Ray actor."""

    def __init__(self) -> None:
        self._learner: Any = None

    def address(self) -> str:
        """`host:port`, free just now, where the ranks may meet."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def start(self, cfg: GRPOConfig, model: Path | Carried, *, rank: int, world: int, master: str) -> None:
        """Join the process group and load the model."""
        import torch

        from rlvla.learner.learner import Learner  # DeepSpeed, in the learner's process only

        torch.set_num_threads(cfg.cluster.threads)
        self._learner = Learner(replace(cfg, model=located(model)), rank=rank, world=world, master=master)

    def call(self, method: str, *args: Any) -> Any:
        """Run a method of the learner."""
        return getattr(self._learner, method)(*args)

    def write(self, method: str, folder: Path) -> tuple[str, dict[str, int]]:
        """Run a method of the learner that fills a folder; the node, and what is `seen` from it once all ranks have."""
        self.call(method, folder)
        return ray.util.get_node_ip_address(), seen(folder)

    @ray.method(num_returns=2)
    def offer(self) -> tuple[tuple[Sequence[str], int], Any]:
        """Begin `Learner.changes`: (names of all weights, `Weights.num_alive`), None; or of an adapter (none, 0), it.

        The second is for the samplers and stays in Ray's store, as a bucket does.
        """
        changes = self.call("changes")
        if not isinstance(changes, Weights):
            return ((), 0), changes
        self._buckets = iter(changes.buckets)
        return (sorted(changes.names), changes.num_alive), None

    @ray.method(num_returns=2)
    def next_bucket(self) -> tuple[bool, Bucket | None]:
        """(True, the next bucket), or (False, None) when there is none any more; all ranks make it together."""
        for bucket in self._buckets:
            return True, bucket
        return False, None

    @ray.method(concurrency_group="writer")
    def finish_state(self) -> tuple[str, dict[str, int]]:
        """Wait until the state that was begun is written; the node, and the files of this rank."""
        return ray.util.get_node_ip_address(), self.call("finish_state")

    @ray.method(concurrency_group="probe")
    def is_alive(self) -> bool:
        """True, also while another method runs or waits for other ranks."""
        return True
