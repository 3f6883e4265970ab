"""One context continued with transformers alone: text token by token, actions from one forward.

The inputs and the mask are the learner's own, and the probabilities those that `scoring.token_logprobs` gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from rlvla.policies.models.backbones import placeholder_ids
from rlvla.policies.thinker.hybrid_mask import model_inputs
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.scoring import next_logits, scored_places
from rlvla.policies.weights import base_model, to_device
from rlvla.protocols import BAN_BIAS, SampleOutput, SampleRequest

Drawn = tuple[list[int], list[float]]
"""Token ids and their log-probabilities."""


@torch.no_grad()
def continued(
    processor: PolicyProcessor, model: Any, request: SampleRequest, generator: torch.Generator
) -> SampleOutput:
    """See `Policy.draw`; of one request.

    Raises:
        ValueError: placeholders and images differ in number; actions are asked for behind another token than `<act>`,
            or of a policy that decodes them like text; or the prompts of this policy are bidirectional, and the request
            does not say how long its prompt is.
    """
    context = processor.expand(request.prompt_ids, request.images)
    if processor.decoding.is_prompt_mutual and not 0 < request.num_prefix_tokens <= len(context):
        raise ValueError(
            f"num_prefix_tokens is {request.num_prefix_tokens}, the context has {len(context)} tokens: a policy "
            "whose prompts see themselves must be told how long they are"
        )
    draw = _actions if request.num_actions else _text
    ids, logprobs = draw(processor, model, request, context, generator)
    return SampleOutput(context_ids=context, token_ids=np.array(ids, np.int32), logprobs=np.array(logprobs, np.float32))


def _inputs(
    processor: PolicyProcessor, model: Any, ids: np.ndarray, request: SampleRequest, num_actions: int
) -> dict[str, torch.Tensor]:
    """Forward inputs of one row, whose last tokens are actions."""
    input_ids = torch.from_numpy(ids).long()[None]
    is_act = torch.arange(len(ids))[None] >= len(ids) - num_actions
    num_prefix_tokens = torch.tensor([request.num_prefix_tokens])
    inputs = processor.forward_inputs(input_ids, torch.ones_like(input_ids), is_act, num_prefix_tokens)
    base = base_model(model)
    return to_device(inputs | processor.pixel_inputs([request.images]), base.device, base.dtype)


def _text(
    processor: PolicyProcessor, model: Any, request: SampleRequest, context: np.ndarray, generator: torch.Generator
) -> Drawn:
    """Token by token, until a stop id or the limit."""
    never = [*placeholder_ids(model.config), *request.banned_ids, *processor.vocabulary.slot_ids]
    fed = model_inputs(model, _inputs(processor, model, context, request, num_actions=0))
    position_ids = fed.get("position_ids")
    core: Any = getattr(base_model(model), "model", None)
    if hasattr(core, "rope_deltas"):  # Qwen-VL's, of the last prompt that had images
        core.rope_deltas = None
    fed["past_key_values"] = DynamicCache(config=model.config.get_text_config())
    ids: list[int] = []
    logprobs: list[float] = []
    while len(ids) < request.max_tokens:
        logits = model(**fed, use_cache=True, logits_to_keep=1).logits[0].float()
        logits[:, never] += BAN_BIAS
        token, logprob = _draw(logits, request.temperature, generator)
        ids.append(int(token))
        logprobs.append(float(logprob))
        if ids[-1] in request.stop_ids:
            break
        fed = {"input_ids": token[None], "past_key_values": fed["past_key_values"]}
        if position_ids is not None:  # an image takes fewer positions than it has tokens
            fed["position_ids"] = (position_ids.amax() + len(ids)).expand(len(position_ids), 1, 1)
    return ids, logprobs


def _actions(
    processor: PolicyProcessor, model: Any, request: SampleRequest, context: np.ndarray, generator: torch.Generator
) -> Drawn:
    """All of them from one forward, independently of each other."""
    vocabulary, num_actions = processor.vocabulary, processor.decoding.num_slots
    if context[-1] != vocabulary.mark_ids["<act>"] or request.num_actions != num_actions:
        raise ValueError("actions are drawn behind an <act>, by a policy that decodes them in parallel")
    any_actions = np.full(num_actions, vocabulary.action_ids[0], np.int32)  # slots are fed in their place
    inputs = _inputs(processor, model, np.concatenate([context, any_actions]), request, num_actions)
    logits = next_logits(model, inputs, scored_places(inputs["is_slot"]))
    bins, logprobs = _draw(logits[:, list(vocabulary.action_ids)], request.temperature, generator)
    return [vocabulary.action_ids[int(bin_)] for bin_ in bins], logprobs.tolist()


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One class of each row of logits [T, C] and its logprob, [T] each; 0 is greedy, with logprobs at 1."""
    logprobs = torch.log_softmax(logits / (temperature or 1.0), -1)
    if temperature == 0:
        drawn = logprobs.argmax(-1, keepdim=True)
    else:
        drawn = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return drawn[:, 0], logprobs.gather(-1, drawn)[:, 0]
