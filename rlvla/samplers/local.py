"""The policy's own network behind the Sampler protocol, without an engine.

`sampler.backend: batched` runs what waits together, for families without words. `transformers` answers one request
after another: simple rather than fast, what parity tests compare with, and the way out where vLLM cannot serve a
checkpoint.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from rlvla.policies.buckets import Bucket, Weights, unpack
from rlvla.policies.family import load_policy
from rlvla.policies.models.lora import Adapter, config_of, load_adapter, put_on
from rlvla.policies.weights import has_adapter
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.samplers.vllm.engine import refuse_other_adapter, refuse_other_weights, weight_names

_Asked = tuple[SampleRequest, "Future[SampleOutput]"]


class BatchedSampler:
    """A `protocols.Sampler`, on a GPU if there is one; thread-safe. `Policy.draw` says what it draws, and how.

    One thread draws. Weights change between two batches, so that no batch mixes versions.

    Args:
        model: checkpoint folder.
        dtype: of weights and activations.
        max_num_seqs: requests that are drawn together at most.

    Raises:
        FileNotFoundError: the folder holds no policy, or no weights.
        RuntimeError: see `Policy.check`.
    """

    def __init__(self, model: Path | str, dtype: torch.dtype = torch.float32, *, max_num_seqs: int = 1) -> None:
        self._policy = load_policy(model)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = dtype
        self._model = self._as_scored(self._policy.load_model(model, dtype)).eval()
        self._weight_names = weight_names(Path(model))
        self._policy_version = 0
        self._lock = threading.Lock()
        self._policy.check(self._model)
        self._max_num_seqs = max_num_seqs
        self._waiting: SimpleQueue[_Asked | None] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """Continue one context; see `protocols.Sampler`.

        Raises:
            ValueError: a request that this policy cannot answer; the message says why.
        """
        answer: Future[SampleOutput] = Future()
        self._waiting.put((request, answer))
        return await asyncio.wrap_future(answer)

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
        """Answer what waits, and end."""
        self._waiting.put(None)

    def _serve(self) -> None:
        """Draw for those who wait, until `close`."""
        is_open = True
        while is_open:
            asked = [self._waiting.get()]
            while len(asked) < self._max_num_seqs and not self._waiting.empty():
                asked.append(self._waiting.get())
            is_open = None not in asked
            # An asker may have gone: an episode that is cut short cancels its request.
            live = [pair for pair in asked if pair is not None and pair[1].set_running_or_notify_cancel()]
            if not live:
                continue
            try:
                outputs = self._drawn([request for request, _ in live])
            except Exception as error:  # whoever asked raises it
                for _, answer in live:
                    answer.set_exception(error)
            else:
                for (_, answer), output in zip(live, outputs, strict=True):
                    answer.set_result(output)

    def _drawn(self, requests: Sequence[SampleRequest]) -> list[SampleOutput]:
        with self._lock:
            generators = [torch.Generator(self._device).manual_seed(request.seed) for request in requests]
            outputs = self._policy.draw(self._model, requests, generators)
            return [replace(output, policy_version=self._policy_version) for output in outputs]


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
