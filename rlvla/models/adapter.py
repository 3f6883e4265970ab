"""LoRA adapters as peft writes them -> the weights of the model that they were trained on; safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlvla.models.openvla.shards import CheckpointError, count

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def require_adapter(folder: Path) -> None:
    """Raises CheckpointError naming the file that a folder lacks."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"adapter: {folder} holds no {name}; pickled adapters are not read")


def merge(model: Any, folder: Path) -> None:
    """Add an adapter to the weights, in place; what is trained of them stays as it was.

    Args:
        model: Hugging Face VLM that the adapter was trained on.
        folder: the adapter; see `require_adapter`.

    Raises:
        CheckpointError: weights of the adapter do not belong to the model, or lack; the message names them.
        ValueError: peft finds no layer for the adapter, or cannot read its config.
        RuntimeError: a weight has another shape; the message is torch's.
    """
    import peft
    from safetensors.torch import load_file

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(folder)))
    result = peft.set_peft_model_state_dict(wrapped, load_file(folder / WEIGHTS))
    # peft lists every weight of the base among the missing ones.
    missing = [name for name in result.missing_keys if ".lora_" in name]
    if problems := [p for p in (count("missing", missing), count("unknown", result.unexpected_keys)) if p]:
        raise CheckpointError(f"adapter: {folder / WEIGHTS}: {'; '.join(problems)}")
    wrapped.merge_and_unload()
    for parameter in trained:  # peft froze them
        parameter.requires_grad_(True)
