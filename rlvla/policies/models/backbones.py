"""What differs between the architectures that a policy is built on: one row for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A family of Hugging Face models."""

    processors: tuple[str, ...]
    """Classes of their processors."""
    image_text: str = "<image>"
    """One image in a prompt."""
    placeholder: str = "<image>"
    """The token in `image_text` that stands for the pixels."""
    is_flat: bool = False
    """Pixels: True, all images of a batch in one row (`image_grid_thw`); False, padded to the row with most images."""
    has_grid_positions: bool = False
    """Rotary positions are laid out by the grid of each image (`get_rope_index`): it takes fewer than it has tokens."""


_QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
BACKBONES = (
    Backbone(processors=("Idefics3Processor", "SmolVLMProcessor")),
    Backbone(
        processors=("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"),
        image_text=_QWEN,
        placeholder="<|image_pad|>",
        is_flat=True,
        has_grid_positions=True,
    ),
    Backbone(processors=("PrismaticProcessor",)),
)
"""idefics3 and smolvlm; qwen2_vl, qwen2_5_vl and qwen3_vl; our openvla, whose files `openvla.checkpoint` reads."""


def backbone_of(hf_processor: Any) -> Backbone:
    """The row of a processor; raises ValueError naming those that there are."""
    name = type(hf_processor).__name__
    for backbone in BACKBONES:
        if name in backbone.processors:
            return backbone
    known = ", ".join(processor for backbone in BACKBONES for processor in backbone.processors)
    raise ValueError(f"{name} is not supported; supported are {known}")


def own_action_ids(config: Any) -> tuple[int, ...] | None:
    """Bin -> id of the action tokens that a model has learned in its pretraining, from its config.

    OpenVLA: the last 256 words of Llama's own vocabulary. None: the model has none, a cold start adds them.
    """
    return getattr(config, "action_ids", None)


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """Ids that stand for pixels, from a model's config; the policy must never produce them."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return tuple(sorted({id_ for id_ in ids if id_ is not None}))
