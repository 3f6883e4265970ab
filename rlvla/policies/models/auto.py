"""Hugging Face checkpoints -> config, model, processor, and back: where transformers' `Auto` classes are called.

They know the models that this package adds as soon as one of these functions ran. Code from a checkpoint is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvla.policies.models import openvla
from rlvla.policies.models.lora import merge, require_adapter

if TYPE_CHECKING:
    import torch

_PUBLISHED = ("*.json", "*.safetensors", "tokenizer.model")
"""Files of a hub's repository that a checkpoint needs."""


def load_config(name: Path | str) -> Any:
    """The `config.json` of a checkpoint, by folder or hub id.

    Raises:
        OSError: there is none; the message is transformers'.
        ValueError: a model that neither transformers nor this package knows, or a config that describes none.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    openvla.register()
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    # transformers takes what a file says as it is, whatever that leads to.
    except (ArithmeticError, AttributeError, LookupError, RecursionError, StrictDataclassError, TypeError) as error:
        raise ValueError(f"{name}: its config.json describes no model: {error}") from error


def make_config(values: Mapping[str, Any]) -> Any:
    """A config from the content of a `config.json`; raises ValueError where it describes no model that is known."""
    from transformers import AutoConfig

    openvla.register()
    rest = dict(values)
    try:
        return AutoConfig.for_model(rest.pop("model_type"), **rest)
    except KeyError:
        raise ValueError("its config needs a model_type, as config.json has it") from None


def load_model(name: Path | str, dtype: torch.dtype, adapter: Path | None = None) -> Any:
    """A vision-language model, by folder or hub id, on the CPU, the LoRA adapter of a folder merged into its weights.

    Raises:
        CheckpointError: an OpenVLA folder or an adapter that is not whole, or an adapter of another model.
        OSError, ValueError: see `load_config`.
    """
    if adapter is not None:
        require_adapter(adapter)  # before a large model is read
    if is_openvla(load_config(name)):
        from rlvla.policies.models.openvla.checkpoint import load_checkpoint

        model: Any = load_checkpoint(_folder(name), dtype=dtype)
    else:
        from transformers import AutoModelForImageTextToText as Auto

        # Left out, transformers would ask at a terminal about code, and fall back to pickles.
        model = Auto.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    if adapter is not None:
        merge(model, adapter)
    return model


def load_processor(name: Path | str) -> Any:
    """The processor that belongs to a model, by folder or hub id: tokenizer and image processor.

    Raises:
        CheckpointError: see `openvla.checkpoint.load_processor`.
        OSError, ValueError: see `load_config`.
    """
    if is_openvla(load_config(name)):
        from rlvla.policies.models.openvla.checkpoint import load_processor

        return load_processor(_folder(name))
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(name, trust_remote_code=False)


def save_model(model: Any, path: Path | str, weights: Mapping[str, Any]) -> None:
    """Write a model's config, and weights in the place of its own; an OpenVLA folder in the published layout."""
    model.save_pretrained(path, state_dict=weights)
    if is_openvla(model.config):
        from rlvla.policies.models.openvla.checkpoint import write_norm_stats

        write_norm_stats(path, model.config)


def is_openvla(config: Any) -> bool:
    """Whether a config is that of OpenVLA or OpenVLA-OFT."""
    return config.model_type == "openvla"


def _folder(name: Path | str) -> Path:
    """A checkpoint on the disk, out of the hub's cache if it is no folder, downloaded if it is not there either."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(name), allow_patterns=list(_PUBLISHED)))
