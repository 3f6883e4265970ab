"""The policy behind the Sampler protocol with transformers alone: one request after another, no batching.

Simple rather than fast: what parity tests compare with, and the way out where vLLM cannot serve a checkpoint
(`sampler.backend: transformers`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla.policies.buckets import Bucket, Weights, unpack
from rlvla.policies.family import load_policy
from rlvla.policies.models.lora import Adapter, config_of, load_adapter, put_on
from rlvla.policies.weights import has_adapter
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.samplers.vllm.engine import refuse_other_adapter, refuse_other_weights, weight_names


class TransformersSampler:
    """A `protocols.Sampler`, on a GPU if there is one; thread-safe. `Policy.draw` says what it draws, and how.

    Args:
        model: checkpoint folder.
        dtype: of weights and activations.

    Raises:
        FileNotFoundError: the folder holds no policy, or no weights.
        RuntimeError: see `Policy.check`.
    """

    def __init__(self, model: Path | str, dtype: torch.dtype = torch.float32) -> None:
        self._policy = load_policy(model)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = dtype
        self._model = self._as_scored(self._policy.load_model(model, dtype)).eval()
        self._weight_names = weight_names(Path(model))
        self._policy_version = 0
        self._lock = threading.Lock()
        self._policy.check(self._model)

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """Continue one context; see `protocols.Sampler`.

        Raises:
            ValueError: a request that this policy cannot answer; the message says why.
        """
        return await asyncio.to_thread(self._sample, request)

    def load_weights(self, weights: Adapter | Weights, policy_version: int) -> None:
        """Replace the weights in place between two requests: all of them, or an adapter, kept unmerged.

        Raises:
            ValueError: names differ from the checkpoint's; nothing was loaded.
        """
        with self._lock:
            self._model = (self._adapted(weights) if isinstance(weights, Adapter) else self._replaced(weights)).eval()
            self._policy_version = policy_version

    def _adapted(self, adapter: Adapter) -> Any:
        if not has_adapter(self._model):
            return self._as_scored(put_on(self._model, adapter.config, adapter))
        refuse_other_adapter(config_of(self._model), adapter.config)
        load_adapter(self._model, adapter)
        return self._model

    def _as_scored(self, model: Any) -> Any:
        """On the device, an adapter in the dtype in which the learner's forward, and vLLM, multiply by it."""
        for parameter in model.parameters() if has_adapter(model) else ():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self._dtype)
        return model.to(self._device)

    def _replaced(self, weights: Weights) -> Any:
        refuse_other_weights(self._weight_names, weights.names)
        held = {tensor.untyped_storage().data_ptr() for tensor in self._model.state_dict().values()}
        named = dict(self._policy.named_weights(self._model))
        places = {name: tensor for name, tensor in named.items() if tensor.untyped_storage().data_ptr() in held}
        others: dict[str, torch.Tensor] = {}
        for bucket in weights.buckets:
            others |= _copied(bucket, places)
        if not others:
            return self._model
        # Those that the model holds in another form, say experts in one tensor: it is made anew, as when it is loaded.
        return self._policy.with_weights(self._model, places | others).to(self._device)

    def close(self) -> None:
        """Nothing runs that would have to end; here for those who hold any sampler."""

    def _sample(self, request: SampleRequest) -> SampleOutput:
        with self._lock:
            generator = torch.Generator(self._device).manual_seed(request.seed)
            context, ids, logprobs = self._policy.draw(self._model, request, generator)
            version = self._policy_version
        return SampleOutput(
            context_ids=context,
            token_ids=np.array(ids, np.int32),
            logprobs=np.array(logprobs, np.float32),
            policy_version=version,
        )


@torch.no_grad()
def _copied(bucket: Bucket, places: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy weights to their places; copies of those that have none."""
    others = {}
    for name, packed in bucket.items():
        if name in places:
            places[name].copy_(unpack(packed))
        else:
            others[name] = unpack(packed).clone()
    return others
