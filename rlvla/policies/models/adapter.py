"""LoRA adapters as peft writes them -> the weights of the model that they were trained on; safetensors only."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from rlvla.policies.models.openvla.shards import CheckpointError, require_none

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LOST = 0.5
"""Share of the adapted weights that a merge may leave as they were, without a warning."""


def require_adapter(folder: Path) -> None:
    """Raises CheckpointError naming the file that a folder lacks."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"adapter: {folder} holds no {name}; pickled adapters are not read")


def merge(model: Any, folder: Path) -> None:
    """Add an adapter to the weights, in place; what is trained of them stays as it was.

    Warns where rounding to the weights' dtype loses it on most of them.

    Args:
        model: Hugging Face VLM that the adapter was trained on.
        folder: the adapter; see `require_adapter`.

    Raises:
        CheckpointError: weights of the adapter do not belong to the model, or lack, or tear apart what the model ties
            together; the message names them.
        ValueError: peft finds no layer for the adapter, or cannot read its config.
        RuntimeError: a weight has another shape; the message is torch's.
    """
    import peft
    from safetensors.torch import load_file

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrapped = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(folder)))
    weights = load_file(folder / WEIGHTS)
    where = f"adapter: {folder / WEIGHTS}"
    require_none(where, {"missing": _replaced(wrapped) - weights.keys()})  # else peft would raise a KeyError
    result = peft.set_peft_model_state_dict(wrapped, weights)
    # peft lists every weight of the base among the missing ones.
    missing = [name for name in result.missing_keys if ".lora_" in name]
    require_none(where, {"missing": missing, "unknown": result.unexpected_keys})
    unchanged = merge_down(wrapped)
    _require_tied(model, folder)
    if unchanged > LOST:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        warnings.warn(
            f"adapter: rounding to {dtype} leaves {unchanged:.0%} of the weights that {folder} adapts as they were, so "
            "that little of it is left: set learner.dtype to float32",
            stacklevel=2,
        )
    for name, parameter in model.named_parameters():  # peft froze them
        parameter.requires_grad_(name in trained)


def merge_down(wrapped: Any) -> float:
    """Merge and take the adapter off; the share of the adapted weights that rounding left as they were."""
    from peft.tuners.lora import LoraLayer

    num_adapted = num_unchanged = 0
    layers: list[Any] = [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        weight, delta = layer.get_base_layer().weight.detach(), layer.get_delta_weight("default")
        num_adapted += int((delta != 0).sum())
        num_unchanged += int(((delta != 0) & (weight + delta.to(weight.dtype) == weight)).sum())
    wrapped.merge_and_unload()
    return num_unchanged / max(1, num_adapted)


def _replaced(wrapped: Any) -> set[str]:
    """Names in the adapter's file of weights that it holds whole, in the place of the model's (`modules_to_save`)."""
    from peft.utils import AuxiliaryTrainingWrapper

    wrappers = {name: m for name, m in wrapped.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)}
    return {f"{name}.{key}" for name, m in wrappers.items() for key in m.adapter_state_dict_load_map("default")}


def _require_tied(model: Any, folder: Path) -> None:
    """Raises CheckpointError where the adapter has replaced one of two weights that the model has as one."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, other in model.all_tied_weights_keys.items():
        if weights[name] is not weights[other]:
            raise CheckpointError(
                f"adapter: modules_to_save of {folder / CONFIG} replace {name} or {other}, which this model ties "
                "together: one of the two would be lost; train the adapter with peft's ensure_weight_tying, or without "
                "them"
            )
