"""Where a model's figures come from: a checkpoint, a JSON file, the hub, or a tiny model of the config.

Figures of a model that is not on this machine are a JSON file: `name` (hub id), `architecture`, `source`, and `config`,
which is its Hugging Face config, or for `"architecture": "openvla"` the sizes of its parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvla.config import LoraConfig, PlanConfig, TinyModelConfig
from rlvla.plan.model import ModelFigures, Stack, count
from rlvla.policies.models import auto
from rlvla.policies.thinker.actions import NUM_BINS, QuantileCodec

if TYPE_CHECKING:
    from rlvla.policies.models.openvla.config import OpenVLAConfig
    from rlvla.policies.thinker.prompt import PolicyProcessor

OPENVLA = "openvla"
_TINY_CORPUS = (
    '<think>look 100 200</think><tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [0, 5, 10, 20]}}',
)
"""Stands in for the demonstrations: a tokenizer trained on those has a few hundred entries more."""


class ArchitectureError(ValueError):
    """A model that cannot be read or planned; the message says what to do."""


def figures_of(
    model: str,
    plan: PlanConfig,
    *,
    lora: LoraConfig | None = None,
    tiny: TinyModelConfig | None = None,
    num_bins: int = NUM_BINS,
) -> ModelFigures:
    """The figures of a config's model.

    Taken from the first that there is: the folder `model`; the JSON `plan.architecture`, unless `model` is the name of
    another one; the hub; for an empty or missing `model` a tiny one.

    Args:
        model: folder or hub id; empty: a tiny model.
        plan: see PlanConfig.
        lora: adapter, if any.
        tiny: what an empty `model` means; None: `model` is a folder, which training has to make first.
        num_bins: of action tokens, for a tiny model.

    Raises:
        ArchitectureError: the model is neither here nor on the hub nor in a JSON.
    """
    path = Path(model)
    if model and (path / "config.json").is_file():
        return _of_folder(path, lora)
    if plan.architecture is not None and (tiny is None or _read(plan.architecture)["name"] == model):
        return _of_json(plan.architecture, lora)
    if model and tiny is not None:
        return _of_hub(model, lora)
    return _of_tiny(tiny or TinyModelConfig(), num_bins, lora, "" if tiny else f"{model} is not here, hence ")


def _read(path: Path) -> dict[str, Any]:
    """Raises ArchitectureError naming file and key."""
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ArchitectureError(f"plan.architecture: {path}: {error}") from None
    for key in ("name", "architecture", "source", "config"):
        if key not in content:
            raise ArchitectureError(f"plan.architecture: {path} has no {key!r}")
    return content


def _of_folder(path: Path, lora: LoraConfig | None) -> ModelFigures:
    from rlvla.policies.thinker.prompt import POLICY_FILE, PolicyProcessor

    processor = PolicyProcessor.load(path) if (path / POLICY_FILE).is_file() else None
    return _of_config(auto.load_config(path), lora, source=str(path), processor=processor)


def _of_hub(name: str, lora: LoraConfig | None) -> ModelFigures:
    try:
        config = auto.load_config(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArchitectureError(
            f"model: {name} is no folder here, and not to be had from the hub ({reason}): name a JSON with its figures "
            "in plan.architecture"
        ) from None
    return _of_config(config, lora, source=f"{name}, config from the hub")


@cache
def _of_json(path: Path, lora: LoraConfig | None) -> ModelFigures:
    content = _read(path)
    source = f"{content['name']}, figures of {path}"
    if content["architecture"] == OPENVLA:
        return _of_openvla(content["config"], lora, source)
    from transformers import AutoConfig

    config = dict(content["config"])
    return _of_config(AutoConfig.for_model(config.pop("model_type"), **config), lora, source=source)


@cache
def _of_tiny(tiny: TinyModelConfig, num_bins: int, lora: LoraConfig | None, why: str) -> ModelFigures:
    import torch

    from rlvla.policies.models.tiny_vlm import build_tiny
    from rlvla.policies.thinker.prompt import PolicyProcessor

    with torch.device("meta"):
        model, hf_processor = build_tiny(tiny, _TINY_CORPUS, num_bins, seed=0)
    codec = QuantileCodec(low=(0.0,), high=(1.0,), num_bins=num_bins, chunk_length=1)
    processor = PolicyProcessor.create(hf_processor, codec, carry_thought=False)
    return count(model, lora, source=f"{why}a tiny {tiny.architecture}", processor=processor)


def _of_config(
    config: Any, lora: LoraConfig | None, *, source: str, processor: PolicyProcessor | None = None
) -> ModelFigures:
    if auto.is_openvla(config):
        return _of_openvla(_sizes(config), lora, source)
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return count(model, lora, source=source, processor=processor)


def _sizes(config: OpenVLAConfig) -> dict[str, Any]:
    """The config of an OpenVLA checkpoint as in the JSON files."""
    towers = [
        {**asdict(tower), "num_extra_tokens": tower.has_class_token + tower.num_registers} for tower in config.towers
    ]
    return {"text": config.get_text_config().to_dict(), "vision": towers}


def _of_openvla(config: Mapping[str, Any], lora: LoraConfig | None, source: str) -> ModelFigures:
    """Llama, and one vision tower before an MLP of two layers, or two of three (openvla's modeling_prismatic.py)."""
    text, towers = config["text"], config["vision"]
    hidden, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    shapes = [(hidden, hidden)] * 4 + [(hidden, inner)] * 3  # q k v o, gate up down
    adapted = layers * sum(a * b for a, b in shapes)
    language = 2 * text["vocab_size"] * hidden + adapted + layers * 2 * hidden + hidden
    width = sum(tower["hidden_size"] for tower in towers)
    sizes = [width, 4 * width, hidden, hidden] if len(towers) == 2 else [width, hidden, hidden]
    projector = sum(before * behind + behind for before, behind in pairwise(sizes))
    vision = sum(map(_vit_parameters, towers)) + projector
    num_patches = (towers[0]["image_size"] // towers[0]["patch_size"]) ** 2
    return ModelFigures(
        source=source,
        num_parameters=language + vision,
        num_vision_parameters=vision,
        num_adapter_parameters=layers * lora.rank * sum(a + b for a, b in shapes) if lora else 0,
        text=Stack(num_layers=layers, hidden_size=hidden, intermediate_size=inner, is_gated=True, norm_in_float32=True),
        vision=tuple(
            Stack(
                num_layers=tower["num_layers"],
                hidden_size=tower["hidden_size"],
                intermediate_size=tower["intermediate_size"],
                is_gated=False,
                norm_in_float32=False,
            )
            for tower in towers
        ),
        num_kv_heads=text["num_key_value_heads"],
        head_size=hidden // text["num_attention_heads"],
        vocabulary_size=text["vocab_size"],
        tokens_of_image=lambda h, w: num_patches,
        patches_of_image=lambda h, w: num_patches,
    )


def _vit_parameters(tower: Mapping[str, Any]) -> int:
    """A ViT of timm: patches, positions, extra tokens, blocks (LayerScale or not), last norm, pooling head or not."""
    h, f = tower["hidden_size"], tower["intermediate_size"]
    attention, mlp = 4 * h * h + 4 * h, 2 * h * f + f + h
    block = 4 * h + attention + mlp + (2 * h if tower["has_layer_scale"] else 0)
    patches = 3 * tower["patch_size"] ** 2 * h + h
    positions = (tower["image_size"] // tower["patch_size"]) ** 2 * h
    head = h + attention + 2 * h + mlp if tower["has_pooling_head"] else 0
    return patches + positions + tower["num_extra_tokens"] * h + tower["num_layers"] * block + 2 * h + head
