"""The config of an OpenVLA checkpoint, as published or tiny.

Field names, defaults and what a backbone's id stands for are those of openvla prismatic/extern/hf/
configuration_prismatic.py; sizes of the vision towers those of timm's models of these names (timm 0.9.16
models/vision_transformer.py), which published configs name and do not spell out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter
from transformers import LlamaConfig, PreTrainedConfig

DINOV2, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
_BACKBONES = {
    "dinosiglip-vit-so-224px": [DINOV2, SIGLIP],
    "dinov2-vit-l": [DINOV2],
    "siglip-vit-so400m": [SIGLIP],
}
"""`vision_backbone_id` -> timm's names."""
_MAX = 65_536
"""A checkpoint from elsewhere must not make us list a billion tokens or layers."""
_Count = Annotated[int, Field(ge=0, le=_MAX)]
_Size = Annotated[int, Field(ge=1, le=_MAX)]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes of one vision transformer; sizes in pixels are of a side."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    hidden_size: _Size
    """D_v."""
    intermediate_size: _Size
    """Of the MLP."""
    num_layers: _Size
    """Blocks; features are those behind the last but one."""
    num_attention_heads: _Size
    """Of every block."""
    patch_size: _Size
    """Pixels."""
    image_size: _Size
    """Pixels."""
    num_registers: _Count
    """Learned tokens that belong to no patch, beside the class token."""
    has_class_token: bool
    """Whether there is a class token."""
    has_layer_scale: bool
    """Whether each branch of a block is scaled per channel before it is added."""
    has_pooling_head: bool
    """Whether checkpoints carry an attention-pooling head; features do not need it."""

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TowerConfig:
        """Raises ValueError naming fields that are missing, unknown, of a wrong type or make no tower."""
        tower = _TOWER.validate_python(dict(fields))
        if tower.num_layers < 2 or tower.hidden_size % tower.num_attention_heads or not tower.num_patches:
            raise ValueError(
                f"vision_towers: num_layers is {tower.num_layers} (at least 2), hidden_size {tower.hidden_size} (a "
                f"multiple of num_attention_heads, {tower.num_attention_heads}), image_size {tower.image_size} (at "
                f"least patch_size, {tower.patch_size})"
            )
        return tower

    @property
    def num_patches(self) -> int:
        """P, of one image."""
        return (self.image_size // self.patch_size) ** 2


_TOWER = TypeAdapter(TowerConfig)
_TOWERS = {
    DINOV2: {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "num_registers": 4,
        "has_class_token": True,
        "has_layer_scale": True,
        "has_pooling_head": False,
    },
    SIGLIP: {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "num_registers": 0,
        "has_class_token": False,
        "has_layer_scale": False,
        "has_pooling_head": True,
    },
}
"""timm's name -> what it stands for, the image size apart."""


class OpenVLAConfig(PreTrainedConfig):
    """What `config.json` of OpenVLA and OpenVLA-OFT checkpoints says, and what this project adds to it.

    Added are `image_token_index`, `action_token_end` and `vision_towers`: published checkpoints have one image at a
    fixed place, a vocabulary that never grows, and towers of timm's sizes.
    """

    model_type = "openvla"
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012 - as transformers declares it
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012

    vision_backbone_id: str = "dinosiglip-vit-so-224px"
    """Names the towers where `timm_model_ids` does not."""
    llm_backbone_id: str = "llama2-7b-pure"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    hf_llm_id: str | None = None
    output_projector_states: bool = False
    """These four are kept for export."""
    use_fused_vision_backbone: bool | None = None
    """Whether there are two towers; None: as `timm_model_ids` has it."""
    timm_model_ids: list[str] | None = None
    """One or two of timm's names."""
    timm_override_act_layers: list[str | None] | None = None
    """Only null is supported: GELU."""
    image_sizes: list[int] | None = None
    """Pixels of a side, per tower; None: 224."""
    image_resize_strategy: str = "resize-naive"
    """See `processor.py`."""
    llm_max_length: int = 2048
    """Tokens."""
    pad_token_id: int = 32000
    """The first id behind Llama's own vocabulary."""
    pad_to_multiple_of: int = 64
    """Rows behind the action tokens: publishing made 32064 of 32000, and a vocabulary that grows adds to them."""
    norm_stats: dict[str, Any] | None = None
    """Data set -> `action` -> `q01`, `q99`, `mask` ..."""
    n_action_bins: int = 256
    """Action tokens."""
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    """Llama's; what it leaves out is transformers' default, of Llama 2 7B's size; None: as published."""
    vision_towers: list[dict[str, Any]] | None = None
    """`TowerConfig` fields per tower; None: looked up by `timm_model_ids`."""
    image_token_index: int | None = None
    """Id that stands for a patch in a prompt; None: the first row that publishing left unused."""
    action_token_end: int | None = None
    """One behind the ids of the action tokens; None: `text_config.vocab_size` without `pad_to_multiple_of`, Llama's own
    vocabulary."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what the file leaves out.

        Raises:
            ValueError: a backbone that is not supported, or fields that contradict each other; the message names them.
        """
        self._set_towers()
        if self.text_config is None:
            self.text_config = {"vocab_size": 32000 + self.pad_to_multiple_of, "pad_token_id": self.pad_token_id}
        if isinstance(self.text_config, dict):
            text = dict(self.text_config)
            if (model_type := text.pop("model_type", "llama")) != "llama":
                raise ValueError(f"text_config: model_type is {model_type!r}; only 'llama' is supported")
            self.text_config = LlamaConfig(**text)
        num_rows = self.text_config.vocab_size
        end = num_rows - self.pad_to_multiple_of if self.action_token_end is None else self.action_token_end
        image = self.pad_token_id + 1 if self.image_token_index is None else self.image_token_index
        is_whole = all(isinstance(number, int) for number in (self.n_action_bins, end, image))
        if not (is_whole and 2 <= self.n_action_bins <= min(end, _MAX) and end <= num_rows and 0 <= image < num_rows):
            raise ValueError(
                f"text_config.vocab_size is {num_rows}: it must hold {self.n_action_bins} action tokens (2 to {_MAX}) "
                f"below action_token_end ({end}), and image_token_index ({image})"
            )
        self.action_token_end, self.image_token_index = end, image
        kwargs.pop("auto_map", None)  # names the published code, which is not run
        super().__post_init__(**kwargs)

    @property
    def towers(self) -> tuple[TowerConfig, ...]:
        """The vision towers, in the order of their channels."""
        return tuple(TowerConfig.from_dict(tower) for tower in self.vision_towers or ())

    @property
    def num_patches(self) -> int:
        """P: tokens of one image."""
        return self.towers[0].num_patches

    @property
    def action_ids(self) -> tuple[int, ...]:
        """Symbol -> id: the lowest actions have the highest ids.

        `ActionTokenizer` writes `vocab_size - digitize(..)`, and digitize counts from 1: symbol 0 is id 31999, symbol
        255 is id 31744 (openvla prismatic/vla/action_tokenizer.py).
        """
        assert self.action_token_end is not None
        return tuple(self.action_token_end - 1 - symbol for symbol in range(self.n_action_bins))

    def _set_towers(self) -> None:
        if self.timm_model_ids is None:
            if self.vision_backbone_id not in _BACKBONES:
                raise ValueError(
                    f"vision_backbone_id is {self.vision_backbone_id!r}; supported are {', '.join(_BACKBONES)}"
                )
            self.timm_model_ids = list(_BACKBONES[self.vision_backbone_id])
        names = self.timm_model_ids
        if self.use_fused_vision_backbone is None:
            self.use_fused_vision_backbone = len(names) == 2
        if len(names) != 1 + self.use_fused_vision_backbone:
            raise ValueError(
                f"timm_model_ids names {len(names)} towers, use_fused_vision_backbone is "
                f"{self.use_fused_vision_backbone}"
            )
        layers: list[str | None] = self.timm_override_act_layers or [None] * len(names)
        if any(layers):
            raise ValueError(f"timm_override_act_layers is {layers}; only null is supported")
        self.timm_override_act_layers = layers
        if self.image_sizes is None:
            self.image_sizes = [224] * len(names)
        if self.vision_towers is None:
            if unknown := [name for name in names if name not in _TOWERS]:
                raise ValueError(f"timm_model_ids names {unknown[0]!r}; supported are {', '.join(_TOWERS)}")
            sizes = zip(names, self.image_sizes, strict=True)
            self.vision_towers = [{**_TOWERS[name], "image_size": size} for name, size in sizes]
        if len({tower.num_patches for tower in self.towers}) != 1 or len(self.towers) != len(names):
            raise ValueError(
                f"vision_towers describes towers of {[tower.num_patches for tower in self.towers]} patches; need "
                f"{len(names)} with as many each"
            )
