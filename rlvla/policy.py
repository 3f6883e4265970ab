"""The policy network: a Hugging Face VLM, with or without LoRA, that scores tokens and gives its weights away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from rlvla.config import LoraConfig
from rlvla.hybrid_mask import model_inputs
from rlvla.models import auto
from rlvla.prompt import PolicyProcessor

IMAGE_TOKEN_BIAS = -100.0
"""Added to the logits of image and video placeholders, in learner and sampler alike: a sampled placeholder would claim
pixels that do not exist. vLLM admits logit biases of -100..100."""

_LANGUAGE_MODEL = r".*(?:language_model|text_model)\..*\.(?:{names})"
"""Vision towers name their projections alike and get no adapter."""


def load_model(
    path: Path | str,
    dtype: torch.dtype = torch.float32,
    lora: LoraConfig | None = None,
    gradient_checkpointing: bool = False,
) -> Any:
    """Load a checkpoint folder (or hub id) and ready it for training; neither code nor pickles of it are run.

    Args:
        path: with `config.json` and safetensors.
        dtype: of weights and activations.
        lora: see `prepare`.
        gradient_checkpointing: see `prepare`.
    """
    return prepare(auto.load_model(path, dtype), lora=lora, gradient_checkpointing=gradient_checkpointing)


def prepare(model: Any, *, lora: LoraConfig | None = None, gradient_checkpointing: bool = False) -> Any:
    """Add what training needs to a model in memory.

    Args:
        model: Hugging Face VLM.
        lora: if given, freeze the model and put an adapter on its language model; starts as the identity.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
    """
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if lora is None:
        return model
    import peft

    names = "|".join(lora.target_modules)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=0.0,
        target_modules=_LANGUAGE_MODEL.format(names=names),
    )
    return peft.get_peft_model(model, config)


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
        banned_ids: that text could not hold when it was sampled; see `rlvla.markup.Vocabulary.banned_ids`.
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


@torch.no_grad()
def reference_logprobs(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    first: int = 1,
    temperature: float = 1.0,
    action_temperature: float | None = None,
    banned_ids: Sequence[int] = (),
) -> torch.Tensor:
    """`token_logprobs` [B, L] of the weights that a LoRA policy started from: the adapter is off meanwhile."""
    temperatures: dict[str, Any] = {"temperature": temperature, "action_temperature": action_temperature}
    with adapter_off(model):
        return token_logprobs(model, inputs, first=first, banned_ids=banned_ids, **temperatures)[0]


@contextlib.contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Run the base weights under a LoRA policy; raises ValueError when there is no adapter to turn off."""
    bare = unwrap(model)
    if not _has_adapter(bare):
        raise ValueError("this policy has no LoRA adapter: its reference must be a model of its own")
    with bare.disable_adapter():
        yield


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """Ids that stand for pixels, from a model's config; the policy must never produce them."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return tuple(sorted({id_ for id_ in ids if id_ is not None}))


def named_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under its name in a Hugging Face checkpoint, LoRA merged into a copy; the model stays as it is.

    Tied weights come once, as `save_pretrained` writes them. Under ZeRO-3 gather the parameters first.
    """
    bare = unwrap(model)
    weights = _merged_state(bare)
    base = bare.get_base_model() if _has_adapter(bare) else bare
    for name in base.all_tied_weights_keys:
        weights.pop(name, None)
    yield from revert_weight_conversion(base, weights).items()


def save_policy(model: Any, processor: PolicyProcessor, path: Path | str) -> None:
    """Write a checkpoint folder that `from_pretrained`, vLLM and `PolicyProcessor.load` read; LoRA is merged."""
    bare = unwrap(model)
    base = bare.get_base_model() if _has_adapter(bare) else bare
    auto.save_model(base, path, _merged_state(bare))
    processor.save(path)


def _has_adapter(bare: Any) -> bool:
    return hasattr(bare, "disable_adapter") and hasattr(bare, "get_base_model")


@torch.no_grad()
def _merged_state(bare: Any) -> dict[str, torch.Tensor]:
    """In-memory name of the model without LoRA -> weight."""
    if not _has_adapter(bare):
        return dict(bare.state_dict())
    from peft.tuners.lora import LoraLayer

    base = bare.get_base_model()
    weights = {name: tensor for name, tensor in base.state_dict().items() if ".lora_" not in name}
    adapted: dict[str, Any] = {name: m for name, m in base.named_modules() if isinstance(m, LoraLayer)}
    for name, module in adapted.items():
        delta = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
        key = f"{name}.base_layer.weight"
        weights[key] = (weights[key].float() + delta).to(weights[key].dtype)
    return {name.replace(".base_layer.", "."): tensor.detach() for name, tensor in weights.items()}
