"""The policy network: a Hugging Face VLM, with or without LoRA, that scores tokens and gives its weights away."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from rlvla.config import LoraConfig
from rlvla.policies.models import auto
from rlvla.policies.models.lora import FOLDER, adapter_config, put_on, read_adapter, require_lora, take
from rlvla.policies.thinker.hybrid_mask import base_model, model_inputs
from rlvla.policies.thinker.prompt import PolicyProcessor

IMAGE_TOKEN_BIAS = -100.0
"""Added to the logits of image and video placeholders, in learner and sampler alike: a sampled placeholder would claim
pixels that do not exist. vLLM admits logit biases of -100..100."""

_ADAPTER = re.compile(r"\.(lora_|trainable_tokens_)")
"""In the names of what peft adds to a model."""


def load_model(path: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a checkpoint folder (or hub id), its adapter on it unmerged; neither code nor pickles of it are run.

    Args:
        path: with `config.json` and safetensors, and perhaps an adapter (`rlvla.policies.models.lora`).
        dtype: of weights and activations; an adapter is float32.
    """
    model, adapter = auto.load_model(path, dtype), read_adapter(path)
    return model if adapter is None else put_on(model, adapter.config, adapter)


def load_to_train(
    path: Path | str,
    dtype: torch.dtype = torch.float32,
    *,
    lora: LoraConfig | None = None,
    gradient_checkpointing: bool = False,
    token_ids: Sequence[int] = (),
) -> Any:
    """Load a checkpoint folder and ready it for training; see `load_model` and `prepare`."""
    options: dict[str, Any] = {"gradient_checkpointing": gradient_checkpointing, "token_ids": token_ids}
    return prepare(auto.load_model(path, dtype), lora=lora, start=path, **options)


def prepare(
    model: Any,
    *,
    lora: LoraConfig | None = None,
    gradient_checkpointing: bool = False,
    token_ids: Sequence[int] = (),
    start: Path | str = "",
) -> Any:
    """Add what training needs to a model in memory.

    Args:
        model: Hugging Face VLM.
        lora: if given, freeze the model and put a float32 adapter on its language model; starts as the identity.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        token_ids: tokens whose rows of the embeddings and of the head an adapter trains whole; `Vocabulary.own_ids`.
        start: checkpoint that the model is from: its adapter, if it has one, is trained further.

    Raises:
        CheckpointError: that adapter is another one than `lora`; the message says what to do.
    """
    if start:
        require_lora(start, lora)
    adapter = read_adapter(start) if start else None
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if lora is None:
        return model
    before = adapter.config.trainable_token_indices if adapter else {}
    config = adapter_config(lora)
    rows = {
        layer: sorted({*token_ids, *before.get(layer, ())})
        for layer in _row_layers(model)
        if token_ids or layer in before
    }
    return put_on(model, replace(config, trainable_token_indices=rows), adapter)


def _row_layers(model: Any) -> list[str]:
    """Names of the embeddings and, unless they are tied to them, of the head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embedding] if head.weight is embedding.weight else [embedding, head]
    return [name for name, module in model.named_modules() if module in layers]


def unwrap(model: Any) -> Any:
    """The Hugging Face (or peft) model inside DeepSpeed's or DDP's wrapper."""
    return model.module if hasattr(model, "module") else model


def token_logprobs(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    first: int = 1,
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
        first: first column to score, at least 1; the columns before cost no logits.
        temperature: logits are divided by it; the sampler's, or 1 for greedy.
        action_temperature: likewise of actions that are decoded in parallel; None: the same.
        banned_ids: that text could not hold when it was sampled; see `markup.Vocabulary.banned_ids`.
        with_entropy: also compute the entropy, in nats.
        entropy_grad: with its gradient, which keeps another copy of the logits.

    Returns:
        logprobs [B, L] float32, where column t scores token t, and 0 before `first`; entropy [B, L] float32 of the
        distribution that token t was drawn from, 0 before `first`, or None.
    """
    input_ids = inputs["input_ids"]
    length = input_ids.shape[1]
    if not 1 <= first < length:
        raise ValueError(f"first is {first}: rows of {length} tokens can be scored from 1 to {length - 1}")
    logits, targets = next_logits(model, inputs, first=first, banned_ids=banned_ids), input_ids[:, first:]
    keep_graph = entropy_grad and torch.is_grad_enabled()
    scored, entropy = _score(logits, targets, temperature, with_entropy, keep_graph)
    if "slot_ids" in inputs:
        is_action, action_ids = inputs["is_slot"][:, first:], inputs["action_ids"]
        bins = (targets[is_action][:, None] == action_ids).int().argmax(-1)
        temperature = temperature if action_temperature is None else action_temperature
        actions = _score(logits[is_action][:, action_ids], bins, temperature, with_entropy, keep_graph)
        scored = scored.masked_scatter(is_action, actions[0])
        entropy = entropy.masked_scatter(is_action, actions[1])
    return nn.functional.pad(scored, (first, 0)), nn.functional.pad(entropy, (first, 0)) if with_entropy else None


def next_logits(
    model: Any, inputs: Mapping[str, torch.Tensor], *, first: int = 1, banned_ids: Sequence[int] = ()
) -> torch.Tensor:
    """Logits [B, L - first, vocabulary] float32 of the tokens from column `first` on; see `token_logprobs`.

    No token that the policy must not say is likely in them. Where actions are decoded in parallel those of each action
    token depend on no other one.
    """
    never = {*placeholder_ids(unwrap(model).config), *banned_ids}
    if "slot_ids" in inputs:
        never.update(inputs["slot_ids"].tolist())
    fed = model_inputs(model, inputs)
    # Logits at t - 1 score token t: those at first-1 .. L-2 are needed, the last one scores nothing.
    keep = inputs["input_ids"].shape[1] - first + 1
    logits = model(**fed, logits_to_keep=keep, use_cache=False).logits[:, :-1].float()
    logits[..., sorted(never)] += IMAGE_TOKEN_BIAS
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


@contextlib.contextmanager
def holding(model: Any, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let parameters have other values for a while: a LoRA policy is its own reference, and its own exact copy.

    Args:
        model: possibly wrapped.
        values: {name in the model without DeepSpeed: value}, of any dtype.
    """
    parameters = dict(unwrap(model).named_parameters())
    kept = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """Ids that stand for pixels, from a model's config; the policy must never produce them."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return tuple(sorted({id_ for id_ in ids if id_ is not None}))


def named_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under its name in a Hugging Face checkpoint, LoRA merged into float32 copies; the model stays.

    Tied weights come once, as `save_pretrained` writes them. Under ZeRO-3 gather the parameters first.
    """
    base = base_model(model)
    weights = _base_state(base) | _merged(base)
    for name in base.all_tied_weights_keys:
        weights.pop(name, None)
    yield from revert_weight_conversion(base, weights).items()


def save_policy(model: Any, processor: PolicyProcessor, path: Path | str) -> None:
    """Write a checkpoint folder that `load_model`, the samplers and `PolicyProcessor.load` read.

    Of a LoRA policy these are the weights that it started from, which `from_pretrained` reads, and beside them the
    adapter, which only we read.
    """
    base = base_model(model)
    auto.save_model(base, path, _base_state(base))
    if has_adapter(model):
        take(unwrap(model)).write(Path(path) / FOLDER)
    processor.save(path)


def has_adapter(model: Any) -> bool:
    """Whether a model, possibly wrapped, is a LoRA policy."""
    bare = unwrap(model)
    return hasattr(bare, "disable_adapter") and hasattr(bare, "get_base_model")


def _base_state(base: Any) -> dict[str, torch.Tensor]:
    """Name in the model without an adapter -> weight, what the adapter adds left out."""
    return {_plain(name): tensor.detach() for name, tensor in base.state_dict().items() if not _ADAPTER.search(name)}


@torch.no_grad()
def _merged(base: Any) -> dict[str, torch.Tensor]:
    """Name in the model without an adapter -> float32 weight, for those that the adapter changes."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    weights: dict[str, torch.Tensor] = {}
    for name, layer in base.named_modules():
        module: Any = layer
        if isinstance(layer, LoraLayer):
            weight = module.get_base_layer().weight.float()
            for adapter in module.active_adapters:
                weight = weight + module.get_delta_weight(adapter).float()
            weights[f"{name}.weight"] = weight
        elif isinstance(layer, TrainableTokensLayer):
            weight = module.get_base_layer().weight.float()
            for adapter in module.active_adapters:
                ids = torch.tensor(module.token_indices[adapter], device=weight.device)
                weight = weight.index_copy(0, ids, module.trainable_tokens_delta[adapter].float())
            weights[_plain(f"{name}.base_layer.weight")] = weight
    return weights


def _plain(name: str) -> str:
    """The name that a weight has without peft."""
    return name.replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
