"""Published OpenVLA and OpenVLA-OFT folders -> model and processor, and back; safetensors only.

Read are `config.json`, `model.safetensors` or its shards, `dataset_statistics.json`, the processor's files, and a
`lora_adapter/` (openvla-oft vla-scripts/finetune.py, `save_training_checkpoint`). The model's parameters have the
published names, so that only what training scripts put before them is mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlvla.models.openvla import register
from rlvla.models.openvla.config import OpenVLAConfig
from rlvla.models.openvla.model import OpenVLAForConditionalGeneration
from rlvla.models.openvla.processor import PrismaticProcessor
from rlvla.models.openvla.shards import CheckpointError, shard_names

STATISTICS_FILE = "dataset_statistics.json"
_WEIGHTS, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
_PREFIXES = ("module.", "base_model.model.")
"""Of DDP and peft."""
_RENAMED = {".ls1.gamma": ".ls1.scale_factor", ".ls2.gamma": ".ls2.scale_factor"}
"""timm's name of a LayerScale -> the published one."""
_NUM_SHOWN = 3
"""Weights that a message names."""


def load_checkpoint(
    path: Path | str, *, dtype: torch.dtype = torch.float32, adapter: Path | str | None = None
) -> OpenVLAForConditionalGeneration:
    """Load a published folder, every weight of it and nothing else.

    Args:
        path: with `config.json` and safetensors.
        dtype: of weights and activations.
        adapter: LoRA folder of peft, merged into the weights.

    Raises:
        CheckpointError: no weights, weights that are missing, unknown or of another shape, or the like of the adapter;
            the message names them.
        ValueError: the config describes no model that is supported; see `OpenVLAConfig`.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} holds no config.json: {_hint(path)}")
    config = OpenVLAConfig.from_pretrained(path)
    config.norm_stats = read_norm_stats(path, config)
    shapes = _published(path)
    with torch.device("meta"):
        expected = {name: list(t.shape) for name, t in OpenVLAForConditionalGeneration(config).state_dict().items()}
    _compare(path, {name: shape for name, (_, _, shape) in shapes.items()}, expected)
    weights = {name: _read(file, key) for name, (file, key, _) in shapes.items()}
    model = OpenVLAForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    if adapter is not None:
        model = _merge(model, Path(adapter))
    return model.eval()


def load_processor(path: Path | str) -> PrismaticProcessor:
    """The processor of a published folder; its tokenizer learns the placeholder of an image.

    Raises:
        CheckpointError: the placeholder does not get the id that the model expects.
    """
    register()
    config = OpenVLAConfig.from_pretrained(path)
    processor = PrismaticProcessor.from_pretrained(path)
    processor.image_seq_len = config.num_patches
    if processor.image_token_id != config.image_token_index:
        raise CheckpointError(
            f"{path}: the tokenizer gives {processor.image_token!r} the id {processor.image_token_id}, config.json has "
            f"image_token_index {config.image_token_index}"
        )
    return processor


def read_norm_stats(path: Path | str, config: OpenVLAConfig) -> dict[str, Any] | None:
    """Statistics of the actions of each data set: those that fine-tuning left beside the weights, or the config's.

    What `rlvla.actions.BinCodec.from_norm_stats` takes.
    """
    file = Path(path) / STATISTICS_FILE
    return json.loads(file.read_text()) if file.is_file() else config.norm_stats


def write_norm_stats(path: Path | str, config: OpenVLAConfig) -> None:
    """Put the statistics of the config, if it has any, where published code looks for them first."""
    if config.norm_stats is not None:
        (Path(path) / STATISTICS_FILE).write_text(json.dumps(config.norm_stats, indent=2) + "\n")


def save_checkpoint(
    model: OpenVLAForConditionalGeneration, path: Path | str, processor: PrismaticProcessor | None = None
) -> None:
    """Write a folder in the published layout, with the weights as they are, and the processor's files if given."""
    path = Path(path)
    model.save_pretrained(path)
    write_norm_stats(path, model.config)
    if processor is not None:
        processor.save_pretrained(path)


def _published(path: Path) -> dict[str, tuple[Path, str, list[int]]]:
    """Name in the model -> file, name in it, shape."""
    found: dict[str, tuple[Path, str, list[int]]] = {}
    for file in _weight_files(path):
        with _open(file) as weights:
            for key in weights.keys():  # noqa: SIM118 - no mapping
                name = _canonical(key)
                if name in found:
                    raise CheckpointError(f"{file}: {key} is there twice, also as {found[name][1]} in {found[name][0]}")
                found[name] = file, key, weights.get_slice(key).get_shape()
    return found


def _weight_files(path: Path) -> list[Path]:
    if (path / _INDEX).is_file():
        names = shard_names((path / _INDEX).read_bytes(), str(path / _INDEX))
        if missing := [name for name in names if not (path / name).is_file()]:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}, which {_INDEX} names")
        return [path / name for name in names]
    if (path / _WEIGHTS).is_file():
        return [path / _WEIGHTS]
    raise CheckpointError(f"{path} holds neither {_WEIGHTS} nor {_INDEX}: {_hint(path)}")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except SafetensorError as error:
        raise CheckpointError(f"{file}: cut off, or not safetensors ({error}); download it again") from None


def _hint(path: Path) -> str:
    """What a folder without weights may be, and what to do."""
    if (path / "lora_adapter").is_dir() or (path / _ADAPTER).is_file():
        return "it holds a LoRA adapter; load the base model's folder with `adapter`"
    names = sorted(file.name for file in path.glob("*.pt"))
    if any(name.startswith(("action_head--", "proprio_projector--", "noisy_action_projector--")) for name in names):
        return (
            f"{', '.join(names)} belong to OpenVLA-OFT's continuous actions and are not needed here; name the folder "
            "that holds the language model's and the towers' weights"
        )
    if names or list(path.glob("*.bin")):
        return "pickles (*.pt, *.bin) are not read; convert them to safetensors"
    return "it is no checkpoint"


def _canonical(key: str) -> str:
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if key.startswith(prefix):
                key, stripped = key.removeprefix(prefix), True
    for old, new in _RENAMED.items():
        key = key.replace(old, new)
    return key


def _compare(path: Path, found: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> None:
    """Raises CheckpointError naming what differs."""
    shapes = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    problems = [
        _some("missing", expected.keys() - found.keys()),
        _some("unknown", found.keys() - expected.keys()),
        _some("of another shape", shapes),
    ]
    if any(problems):
        raise CheckpointError(f"{path}: {'; '.join(problem for problem in problems if problem)}")


def _some(what: str, names: Iterable[str]) -> str:
    """`names` counted, and the first of them; empty when there are none."""
    names = sorted(names)
    if not names:
        return ""
    dots = ", ..." if len(names) > _NUM_SHOWN else ""
    return f"{len(names)} weights {what}: {', '.join(names[:_NUM_SHOWN])}{dots}"


def _read(file: Path, key: str) -> torch.Tensor:
    with safe_open(file, "pt") as weights:
        return weights.get_tensor(key)


def _merge(model: OpenVLAForConditionalGeneration, adapter: Path) -> OpenVLAForConditionalGeneration:
    """Add a LoRA adapter to the weights; raises CheckpointError naming what does not fit."""
    import peft
    from safetensors.torch import load_file

    if not (adapter / _ADAPTER).is_file():
        raise CheckpointError(f"{adapter} holds no {_ADAPTER}; pickled adapters are not read")
    config = peft.PeftConfig.from_pretrained(str(adapter))
    wrapped = peft.get_peft_model(model, config)
    result = peft.set_peft_model_state_dict(wrapped, load_file(adapter / _ADAPTER))
    # peft lists every weight of the base among the missing ones.
    missing = [name for name in result.missing_keys if ".lora_" in name]
    if problems := [p for p in (_some("missing", missing), _some("unknown", result.unexpected_keys)) if p]:
        raise CheckpointError(f"{adapter / _ADAPTER}: {'; '.join(problems)}")
    wrapped.merge_and_unload()  # in place
    model.requires_grad_(True)  # peft froze it
    model.freeze_unused()
    return model
