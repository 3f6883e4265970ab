"""Both ends of a weight sync as `sync.py` measures it: the project's own actors, the learner's without an optimizer."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rlvla.cluster.actors import SamplerActor
from rlvla.cluster.learner_actor import LearnerActor
from rlvla.config import SamplerConfig
from rlvla.policies.buckets import Weights, make_buckets
from rlvla.policies.family import load_policy


class Source(LearnerActor):
    """A rank that holds a checkpoint's weights in bfloat16, and nothing else."""

    def __init__(self, model: Path, bucket_mb: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self._policy = load_policy(model)
        self._model = self._policy.load_model(model, torch.bfloat16)
        self._num_bytes = int(bucket_mb * 2**20)
        self._parts = self._policy.weight_parts(self._model)
        self._learner: Any = SimpleNamespace(changes=self._changes)

    def _changes(self) -> Weights:
        named = self._policy.named_weights
        buckets = make_buckets(self._parts, self._num_bytes, lambda part: named(self._model, part))
        return Weights(names=frozenset(name for part in self._parts for name in part.names), buckets=buckets)

    @torch.no_grad()
    def change(self) -> None:
        """Every weight."""
        for weight in self._model.parameters():
            weight.neg_()

    def pid(self) -> int:
        """Of the process."""
        return os.getpid()

    def digest(self) -> str:
        """Of all weights."""
        return _digest(self._model)


class Receiver(SamplerActor):
    """A SamplerActor of which one may ask more."""

    def __init__(self, model: Path, config: SamplerConfig) -> None:
        super().__init__(model, config, max_images=1, max_model_len=128, seed=0)

    async def pid(self) -> int:
        """Of the process."""
        return os.getpid()

    async def digest(self) -> str:
        """Of all weights of a transformers sampler."""
        sampler: Any = self._sampler
        return _digest(sampler._model)


def _digest(model: Any) -> str:
    state = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        state.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
