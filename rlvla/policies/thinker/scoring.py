"""Tokens -> their log-probabilities under a model, as they were sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlvla.policies.models.backbones import placeholder_ids
from rlvla.policies.thinker.hybrid_mask import model_inputs
from rlvla.policies.weights import base_model, unwrap
from rlvla.protocols import BAN_BIAS


def token_logprobs(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    mask: torch.Tensor | None = None,
    temperature: float = 1.0,
    action_temperature: float | None = None,
    banned_ids: Sequence[int] = (),
    with_entropy: bool = False,
    entropy_grad: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of every token given those before it, at the temperature it was sampled at.

    Of a policy that decodes actions in parallel an action token's is given the text before its block alone, and under
    a softmax over the action bins (OpenVLA-OFT, arXiv 2502.19645; SimpleVLA-RL, arXiv 2509.09674, likewise slices).
    Those of a prompt whose tokens see each other mean nothing; no prompt is scored.

    Args:
        model: possibly wrapped by peft, DeepSpeed or DDP.
        inputs: from `PolicyProcessor.forward_inputs`, and the pixels; `input_ids` is [B, L], padded on the right.
        mask: [B, L] bool, tokens to score; others cost no logits, and nothing comes before the first column. None: all.
        temperature: logits are divided by it; the sampler's, or 1 for greedy.
        action_temperature: likewise of actions that are decoded in parallel; None: the same.
        banned_ids: that text could not hold when it was sampled; see `Vocabulary.banned_ids`.
        with_entropy: also compute the entropy, in nats.
        entropy_grad: with its gradient, which keeps another copy of the logits.

    Returns:
        logprobs [B, L] float32, where column t scores token t, and 0 off the mask; entropy [B, L] float32 of the
        distribution that token t was drawn from, 0 off the mask, or None.
    """
    input_ids = inputs["input_ids"]
    mask = None if mask is None else mask.to(input_ids.device)
    places = scored_places(torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask)
    logits, targets = next_logits(model, inputs, places, banned_ids=banned_ids), input_ids[places]
    keep_graph = entropy_grad and torch.is_grad_enabled()
    scored, entropy = _score(logits, targets, temperature, with_entropy, keep_graph)
    if "slot_ids" in inputs:
        is_action, action_ids = inputs["is_slot"][places], inputs["action_ids"]
        bins = (targets[is_action][:, None] == action_ids).int().argmax(-1)
        temperature = temperature if action_temperature is None else action_temperature
        actions = _score(logits[is_action][:, action_ids], bins, temperature, with_entropy, keep_graph)
        scored = scored.masked_scatter(is_action, actions[0])
        entropy = entropy.masked_scatter(is_action, actions[1])

    def spread(values: torch.Tensor) -> torch.Tensor:
        spread = values.new_zeros(input_ids.shape).index_put(places, values)
        return spread if mask is None else torch.where(mask, spread, 0.0)  # of no token at all one was scored

    return spread(scored), spread(entropy) if with_entropy else None


Places = tuple[torch.Tensor, torch.Tensor]
"""Rows [T] and columns [T] of tokens of a batch."""


def scored_places(mask: torch.Tensor) -> Places:
    """Where a mask [B, L] is True, but for the first column; at least one, as every rank runs the whole model."""
    rows, columns = mask[:, 1:].nonzero(as_tuple=True)
    if not len(rows):
        rows = columns = torch.zeros(1, dtype=torch.long, device=mask.device)
    return rows, columns + 1


def next_logits(
    model: Any, inputs: Mapping[str, torch.Tensor], places: Places, *, banned_ids: Sequence[int] = ()
) -> torch.Tensor:
    """Logits [T, vocabulary] float32 of the tokens at some places; see `token_logprobs`.

    No token that the policy must not say is likely in them. Where actions are decoded in parallel those of each action
    token depend on no other one.
    """
    never = {*placeholder_ids(unwrap(model).config), *banned_ids}
    if "slot_ids" in inputs:
        never.update(inputs["slot_ids"].tolist())
    rows, columns = places
    head = base_model(model).get_output_embeddings()
    # A model's `logits_to_keep` are columns, the same ones in every row. What its head is given decides what it
    # computes; all that the model does with logits behind it, such as a soft cap, stays.
    gather = head.register_forward_pre_hook(lambda _, args: args[0][rows, columns - 1][None])
    try:
        logits = model(**model_inputs(model, inputs), use_cache=False).logits[0].float()
    finally:
        gather.remove()
    logits[:, sorted(never)] += BAN_BIAS
    return logits


def _score(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, with_entropy: bool, entropy_grad: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [..., C] and targets [...] among C -> their logprobs [...], and the entropy [...], 0 if not wanted."""
    if temperature != 1.0:
        logits = logits / temperature
    log_normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[..., None])[..., 0] - log_normaliser
    if not with_entropy:
        return logprobs, torch.zeros_like(logprobs)
    with torch.set_grad_enabled(entropy_grad):
        return logprobs, log_normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
