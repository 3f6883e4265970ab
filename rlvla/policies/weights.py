"""The weights of a Hugging Face VLM, with or without LoRA: loaded, readied for training, named, exchanged, written."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlvla.config import LoraConfig
from rlvla.policies.buckets import Part
from rlvla.policies.models import auto
from rlvla.policies.models.lora import FOLDER, adapter_config, put_on, read_adapter, require_lora, take

_ADAPTER = re.compile(r"\.(lora_|trainable_tokens_)")
"""In the names of what peft adds to a model."""


def load_model(path: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a checkpoint folder (or hub id), its float32 adapter on it unmerged; neither code nor pickles are run."""
    model, adapter = auto.load_model(path, dtype), read_adapter(path)
    return model if adapter is None else put_on(model, adapter.config, adapter)


def prepare(
    model: Any,
    *,
    lora: LoraConfig | None = None,
    gradient_checkpointing: bool = False,
    token_ids: Sequence[int] = (),
    start: Path | str = "",
) -> Any:
    """Add what training needs to a Hugging Face VLM in memory.

    With `lora` the model is frozen under a float32 adapter of its language model, which starts as the identity, or as
    that of the checkpoint `start`; it trains rows of the embeddings and of the head whole, those of `token_ids`.

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


def base_model(model: Any) -> Any:
    """The Hugging Face model inside the wrappers of DeepSpeed, DDP and peft."""
    bare = unwrap(model)
    return bare.get_base_model() if hasattr(bare, "get_base_model") else bare


def to_device(inputs: dict[str, torch.Tensor], device: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Forward inputs where the model is, pixels in its dtype."""
    return {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in inputs.items()}


def has_adapter(model: Any) -> bool:
    """Whether a model, possibly wrapped, is a LoRA policy."""
    return hasattr(unwrap(model), "get_base_model")


@contextlib.contextmanager
def holding(model: Any, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let parameters, by name without DeepSpeed, have other values of any dtype for a while.

    A LoRA policy is its own reference, and its own exact copy.
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


def named_weights(model: Any, part: Part | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight, or those of a part, under its name in a Hugging Face checkpoint; views of the model's, mostly.

    LoRA is merged into float32 copies; the model stays. Tied weights come once, as `save_pretrained` writes them. Under
    ZeRO-3 gather the parameters first.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = base_model(model)
    weights = _base_state(base) | _merged(base)
    for name in base.all_tied_weights_keys:
        weights.pop(name, None)
    if part is not None:
        weights = {name: weights[name] for name in part.held}
    yield from revert_weight_conversion(base, weights).items()


def weight_parts(model: Any) -> list[Part]:
    """The weights of a model without an adapter in the parts in which `named_weights` can make them.

    A parameter is a part of its own, unless transformers makes a weight of the checkpoint out of several: all such
    parameters are one part then, the last.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = base_model(model)
    held = base.state_dict(keep_vars=True)
    for name in base.all_tied_weights_keys:
        held.pop(name, None)
    empty = {name: _without_content(tensor) for name, tensor in held.items()}

    def made_of(names: Collection[str]) -> dict[str, torch.Size]:
        try:
            made = revert_weight_conversion(base, {name: empty[name] for name in names})
        except (RuntimeError, ValueError, LookupError):  # it takes others as well
            return {}
        return {name: tensor.shape for name, tensor in made.items()}

    whole = made_of(held)
    by_name = {name: made_of([name]) for name in held}
    makers = Counter(made for names in by_name.values() for made in names)
    parts, together = [], {}
    for name, made in by_name.items():
        if made and all(makers[key] == 1 and whole.get(key) == shape for key, shape in made.items()):
            parts.append(Part(held={name: held[name]}, names=tuple(made)))
        else:
            together[name] = held[name]
    if together:
        rest = whole.keys() - {name for part in parts for name in part.names}
        parts.append(Part(held=together, names=tuple(sorted(rest))))
    return parts


def _without_content(tensor: torch.Tensor) -> torch.Tensor:
    """On the meta device; of a parameter that ZeRO-3 has cut up, the whole."""
    return torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")


def with_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """A model of the same kind with other weights, the inverse of `named_weights`; on the CPU."""
    old = base_model(model)
    return type(old).from_pretrained(None, config=old.config, state_dict=dict(weights), dtype=old.dtype)


def save_weights(model: Any, path: Path | str) -> None:
    """Write config and weights of a checkpoint folder.

    Of a LoRA policy these are the weights that it started from, which `from_pretrained` reads, and beside them the
    adapter, which only we read.
    """
    base = base_model(model)
    auto.save_model(base, path, _base_state(base))
    if has_adapter(model):
        take(unwrap(model)).write(Path(path) / FOLDER)


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
