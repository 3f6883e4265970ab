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
from transformers import DynamicCache

from rlvla.policies.models.lora import Adapter, config_of, load_adapter, put_on
from rlvla.policies.thinker import policy
from rlvla.policies.thinker.hybrid_mask import base_model, check_hybrid, model_inputs
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.samplers.vllm.engine import refuse_other_adapter, refuse_other_weights, weight_names


class TransformersSampler:
    """A `protocols.Sampler`; thread-safe.

    Text is generated token by token, each drawn from softmax(logits / temperature); actions are drawn from one forward
    with the learner's own inputs and mask. Probabilities are those that `policy.token_logprobs` gives.

    Args:
        model: checkpoint folder.
        dtype: of weights and activations.
        device: to run on; None: a GPU if there is one.

    Raises:
        FileNotFoundError: the folder holds no policy, or no weights.
        HybridAttentionError: see `rlvla.policies.thinker.hybrid_mask.check_hybrid`.
    """

    def __init__(
        self, model: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        self._processor = PolicyProcessor.load(model)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype
        self._model = self._as_scored(policy.load_model(model, dtype)).eval()
        self._weight_names = weight_names(Path(model))
        self._policy_version = 0
        self._lock = threading.Lock()
        if self._processor.is_hybrid:
            check_hybrid(self._model, self._processor)

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """Continue one context; see `protocols.Sampler`.

        Raises:
            ValueError: placeholders and images differ in number; actions are asked for behind another token than
                `<act>`, or of a policy that decodes them like text; or the prompts of this policy are bidirectional,
                and the request does not say how long its prompt is.
        """
        return await asyncio.to_thread(self._sample, request)

    def load_weights(self, weights: Adapter | Mapping[str, np.ndarray], policy_version: int) -> None:
        """Replace the weights between two requests.

        Args:
            weights: {name in the Hugging Face checkpoint: array}, all of them; see `policy.named_weights`. Or
                the adapter of a LoRA policy, which stays beside the checkpoint's weights, unmerged.
            policy_version: put on every output from now on.

        Raises:
            ValueError: names differ from the checkpoint's; nothing was loaded.
        """
        with self._lock:
            self._model = (self._adapted(weights) if isinstance(weights, Adapter) else self._replaced(weights)).eval()
            self._policy_version = policy_version

    def _adapted(self, adapter: Adapter) -> Any:
        if not policy.has_adapter(self._model):
            return self._as_scored(put_on(self._model, adapter.config, adapter))
        refuse_other_adapter(config_of(self._model), adapter.config)
        load_adapter(self._model, adapter)
        return self._model

    def _as_scored(self, model: Any) -> Any:
        """On the device, an adapter in the dtype in which the learner's forward, and vLLM, multiply by it."""
        for parameter in model.parameters() if policy.has_adapter(model) else ():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self._dtype)
        return model.to(self._device)

    def _replaced(self, weights: Mapping[str, np.ndarray]) -> Any:
        refuse_other_weights(self._weight_names, weights)
        state = {name: torch.tensor(array) for name, array in weights.items()}
        old = base_model(self._model)
        return type(old).from_pretrained(None, config=old.config, state_dict=state, dtype=old.dtype).to(self._device)

    def close(self) -> None:
        """Nothing runs that would have to end; here for those who hold any sampler."""

    @torch.no_grad()
    def _sample(self, request: SampleRequest) -> SampleOutput:
        context = self._processor.expand(request.prompt_ids, request.images)
        if self._processor.prefix_attention == "bidirectional" and not 0 < request.num_prefix_tokens <= len(context):
            raise ValueError(
                f"num_prefix_tokens is {request.num_prefix_tokens}, the context has {len(context)} tokens: a policy "
                "whose prompts see themselves must be told how long they are"
            )
        with self._lock:
            generator = torch.Generator(self._device).manual_seed(request.seed)
            draw = self._actions if request.num_actions else self._text
            ids, logprobs = draw(request, context, generator)
            version = self._policy_version
        return SampleOutput(
            context_ids=context,
            token_ids=np.array(ids, np.int32),
            logprobs=np.array(logprobs, np.float32),
            policy_version=version,
        )

    def _inputs(self, ids: np.ndarray, request: SampleRequest, num_actions: int) -> dict[str, torch.Tensor]:
        """Forward inputs of one row, whose last tokens are actions."""
        input_ids = torch.from_numpy(ids).long()[None]
        is_act = torch.arange(len(ids))[None] >= len(ids) - num_actions
        num_prefix_tokens = torch.tensor([request.num_prefix_tokens])
        inputs = self._processor.forward_inputs(input_ids, torch.ones_like(input_ids), is_act, num_prefix_tokens)
        inputs |= self._processor.pixel_inputs([request.images])
        dtype = self._dtype
        return {n: t.to(self._device, dtype if t.is_floating_point() else t.dtype) for n, t in inputs.items()}

    def _text(
        self, request: SampleRequest, context: np.ndarray, generator: torch.Generator
    ) -> tuple[list[int], list[float]]:
        """Token by token, until a stop id or the limit."""
        slots = self._processor.vocabulary.slot_ids
        never = [*policy.placeholder_ids(self._model.config), *request.banned_ids, *slots]
        fed = model_inputs(self._model, self._inputs(context, request, num_actions=0))
        position_ids = fed.get("position_ids")
        core: Any = getattr(base_model(self._model), "model", None)
        if hasattr(core, "rope_deltas"):  # Qwen-VL's, of the last prompt that had images
            core.rope_deltas = None
        fed["past_key_values"] = DynamicCache(config=self._model.config.get_text_config())
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < request.max_tokens:
            logits = self._model(**fed, use_cache=True, logits_to_keep=1).logits[0].float()
            logits[:, never] += policy.IMAGE_TOKEN_BIAS
            token, logprob = _draw(logits, request.temperature, generator)
            ids.append(int(token))
            logprobs.append(float(logprob))
            if ids[-1] in request.stop_ids:
                break
            fed = {"input_ids": token[None], "past_key_values": fed["past_key_values"]}
            if position_ids is not None:  # Qwen-VL's: an image takes fewer positions than it has tokens
                fed["position_ids"] = (position_ids.amax() + len(ids)).expand(len(position_ids), 1, 1)
        return ids, logprobs

    def _actions(
        self, request: SampleRequest, context: np.ndarray, generator: torch.Generator
    ) -> tuple[list[int], list[float]]:
        """All of them from one forward, independently of each other."""
        vocabulary = self._processor.vocabulary
        if context[-1] != vocabulary.mark_ids["<act>"] or request.slot_ids != vocabulary.slot_ids:
            raise ValueError("actions are drawn behind an <act>, by a policy that decodes them in parallel")
        any_actions = np.full(request.num_actions, request.action_ids[0], np.int32)  # slots are fed in their place
        inputs = self._inputs(np.concatenate([context, any_actions]), request, request.num_actions)
        logits = policy.next_logits(self._model, inputs, first=len(context))[0]
        bins, logprobs = _draw(logits[:, list(request.action_ids)], request.temperature, generator)
        return [request.action_ids[int(bin_)] for bin_ in bins], logprobs.tolist()


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One class of each row of logits [T, C] and its logprob, [T] each; 0 is greedy, with logprobs at 1."""
    logprobs = torch.log_softmax(logits / (temperature or 1.0), -1)
    if temperature == 0:
        drawn = logprobs.argmax(-1, keepdim=True)
    else:
        drawn = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return drawn[:, 0], logprobs.gather(-1, drawn)[:, 0]
