"""A model's figures without its weights: built on torch's meta device, and counted there."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, PositiveInt, TypeAdapter

from rlvla.config import ActionDecoding, LoraConfig, SFTConfig, TinyModelConfig
from rlvla.policies.family import Sizes, family_of, is_policy, load_policy
from rlvla.policies.models import auto

if TYPE_CHECKING:
    from rlvla.policies.family import Policy

_VISION = ("visual.", "vision_model.", "connector.", "vision_backbone.", "projector.")
"""Parts of module names that hold the towers and what joins them to the language model."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """The JSON file `plan.architecture`: a model and its policy, neither of which has to be on this machine."""

    __pydantic_config__: ClassVar[Any] = ConfigDict(extra="forbid")

    name: str
    """Hub id of the model; empty: the tiny model of the config."""
    config: dict[str, Any] = field(default_factory=dict)
    """The model's Hugging Face config, with its `model_type`; empty: the tiny model of the config."""
    chunk_length: PositiveInt = 8
    """K of the policy (OpenVLA-OFT: 8 in LIBERO)."""
    action_decoding: ActionDecoding = "autoregressive"
    """Of the policy; see `SFTConfig`."""
    source: str = ""
    """Where the config comes from, for the reader."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Transformer blocks of one size."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    is_gated: bool
    """As Llama's: an MLP of three projections, and RMSNorm on a float32 copy; or as a ViT's: of two, and LayerNorm."""


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """All that memory and time depend on."""

    source: str
    """Where the figures come from, to print."""
    num_parameters: int
    """Of the model itself, tied ones once, the adapter left out."""
    num_vision_parameters: int
    """Those of them that see pixels only."""
    num_adapter_parameters: int
    """Of LoRA, but for the rows of the markup's tokens; 0 without."""
    text: Stack
    vision: tuple[Stack, ...]
    """Towers; each sees every patch."""
    kv_values_per_token: int
    """Keys and values of one token over all layers."""
    vocabulary_size: int
    """Rows of the language model's head."""
    tokens_per_image: int
    """In a context, marks around it included."""
    patches_per_image: int
    """That the towers see."""
    values_per_image: int
    """Numbers that a prepared picture has."""

    @property
    def num_trained_parameters(self) -> int:
        """The adapter's, or all."""
        return self.num_adapter_parameters or self.num_parameters


@cache
def describe(path: Path | None) -> Described:
    """Read `plan.architecture`; None, or a cold start's YAML: a tiny model, and the defaults.

    Raises:
        ValueError: the JSON is none of these; the message names file and key.
    """
    if path is None or path.suffix in YAML:
        return Described(name="")
    try:
        return TypeAdapter(Described).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"plan.architecture: {path}: {error}") from None


YAML = (".yaml", ".yml")
"""Endings of a `plan.architecture` that is a cold start's config, for `rlvla.plan.acting`."""


@cache
def figures_of(
    model: str,
    architecture: Path | None = None,
    *,
    view_shape: tuple[int, int] = (256, 256),
    lora: LoraConfig | None = None,
    tiny: TinyModelConfig | None = None,
    num_bins: int | None = None,
) -> ModelFigures:
    """The figures of a config's model.

    Taken from the first that there is: the folder `model`; the JSON, unless `model` is the name of another one; the
    hub; for an empty or missing `model` a tiny one.

    Args:
        model: folder or hub id; empty: a tiny model.
        architecture: see `Described`.
        view_shape: (H, W) of a picture, px.
        lora: adapter to put on, if any.
        tiny: what an empty `model` means; None: `model` is a folder, which training has to make first.
        num_bins: of action tokens, for a tiny model; None: the usual number.

    Raises:
        ValueError: the model is neither here nor on the hub nor in a JSON.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    described = describe(architecture)
    is_here = bool(model) and (Path(model) / "config.json").is_file()
    is_described = bool(described.config) and not is_here and (tiny is None or described.name == model)
    if not is_here and not is_described and (tiny is None or not model):
        built, policy = family_of("").sketch(SFTConfig(tiny=tiny or TinyModelConfig(), num_bins=num_bins), Sizes())
        why = "" if tiny else f"{model} is not here: "
        return count(built, lora, view_shape, source=f"{why}a tiny {built.config.model_type}", policy=policy)
    try:
        config = auto.make_config(described.config) if is_described else auto.load_config(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model: {model} has no config that can be read, neither here nor on the hub nor in plan.architecture "
            f"({str(error).splitlines()[0]}): name a JSON with it in plan.architecture"
        ) from None
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(config)
    policy = load_policy(model) if is_policy(model) else None
    source = f"{described.name}, figures of {architecture}" if is_described else model
    return count(built, lora, view_shape, source=source, policy=policy)


def count(
    model: Any,
    lora: LoraConfig | None,
    view_shape: tuple[int, int],
    *,
    source: str,
    policy: Policy | None = None,
) -> ModelFigures:
    """Count a VLM that `AutoModelForImageTextToText` has built, on whatever device; an adapter is put on it.

    `view_shape` is a picture's (H, W), px. `policy` tells the tokens of one; None: OpenVLA's patches, or the formula of
    Qwen-VL.
    """
    from rlvla.policies.weights import prepare

    config, text = model.config, model.config.get_text_config()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    adapter = 0
    if lora is not None:
        adapter = sum(p.numel() for name, p in prepare(model, lora=lora).named_parameters() if ".lora_" in name)
    towers = config.towers if auto.is_openvla(config) else (config.vision_config,)
    tokens, patches = _image_sizes(towers[0], *view_shape)
    if policy is not None:
        tokens = policy.tokens_of_image(*view_shape)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelFigures(
        source=source,
        num_parameters=sum(sizes.values()),
        num_vision_parameters=sum(size for name, size in sizes.items() if any(part in name for part in _VISION)),
        num_adapter_parameters=adapter,
        text=_stack(text, is_gated=True),
        vision=tuple(_stack(tower, is_gated=_is_qwen(tower)) for tower in towers),
        kv_values_per_token=2 * text.num_hidden_layers * text.num_key_value_heads * head_size,
        vocabulary_size=text.vocab_size,
        tokens_per_image=tokens,
        patches_per_image=patches,
        values_per_image=sum(_values(tower, patches) for tower in towers),
    )


def _values(tower: Any, num_patches: int) -> int:
    """Colours of the pixels that a tower is given; Qwen-VL is given each picture twice, as a video of two frames."""
    return 3 * num_patches * tower.patch_size**2 * getattr(tower, "temporal_patch_size", 1)


def _is_qwen(tower: Any) -> bool:
    return hasattr(tower, "spatial_merge_size")


def _stack(sizes: Any, *, is_gated: bool) -> Stack:
    names = ("depth", "num_layers", "num_hidden_layers")
    return Stack(
        num_layers=next(getattr(sizes, name) for name in names if hasattr(sizes, name)),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        is_gated=is_gated,
    )


def _image_sizes(tower: Any, height: int, width: int) -> tuple[int, int]:
    """(tokens in a context, patches) of a picture.

    Qwen-VL rounds both sides to multiples of a merged patch (`smart_resize`, far from its limits on pixels), each of
    which becomes a token, with one mark before and behind all. Other towers resize every picture to one size.
    """
    if not _is_qwen(tower):
        num_patches = (tower.image_size // tower.patch_size) ** 2
        return num_patches, num_patches
    side = tower.patch_size * tower.spatial_merge_size
    merged = round(height / side) * round(width / side)
    return merged + 2, merged * tower.spatial_merge_size**2
