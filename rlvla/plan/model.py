"""A model's figures without its weights: parameters, sizes of its layers, tokens of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlvla.config import LoraConfig

if TYPE_CHECKING:
    from rlvla.policies.thinker.prompt import PolicyProcessor

_VISION = ("visual.", "vision_model.", "connector.")
"""Parts of module names that hold the towers and what joins them to the language model."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Transformer blocks of one size."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    is_gated: bool
    """MLP: gate, up and down projection; or two."""
    norm_in_float32: bool
    """RMSNorm as transformers computes it, on a float32 copy; or torch's LayerNorm."""


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
    num_kv_heads: int
    head_size: int
    vocabulary_size: int
    """Rows of the language model's head."""
    tokens_of_image: Callable[[int, int], int]
    """(height, width) of a picture, px -> tokens in a context, marks around it included."""
    patches_of_image: Callable[[int, int], int]
    """(height, width) -> patches that the towers see."""

    @property
    def num_trained_parameters(self) -> int:
        """The adapter's, or all."""
        return self.num_adapter_parameters or self.num_parameters

    @property
    def num_text_parameters(self) -> int:
        """Those that a token of a context meets; tied embeddings are its head, others are only looked up."""
        return self.num_parameters - self.num_vision_parameters

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.text.num_layers * self.num_kv_heads * self.head_size


def count(
    model: Any, lora: LoraConfig | None, *, source: str, processor: PolicyProcessor | None = None
) -> ModelFigures:
    """Count a Hugging Face VLM, on whatever device; an adapter is put on it.

    Args:
        model: as `AutoModelForImageTextToText` builds it.
        lora: adapter to put on, if any.
        source: see ModelFigures.
        processor: tells the tokens of an image; None: the formula of Qwen-VL.
    """
    from rlvla.policies.thinker.policy import prepare

    config, text = model.config, model.config.get_text_config()
    num_parameters = sum(p.numel() for p in model.parameters())
    num_vision = sum(p.numel() for name, p in model.named_parameters() if any(part in name for part in _VISION))
    adapter = 0
    if lora is not None:
        named = dict(prepare(model, lora=lora).named_parameters())
        adapter = sum(p.numel() for name, p in named.items() if ".lora_" in name)
    vision = config.vision_config
    is_qwen = hasattr(vision, "spatial_merge_size")
    side = vision.patch_size * (vision.spatial_merge_size if is_qwen else 1)
    tokens = (lambda h, w: _qwen_tokens(h, w, side)) if processor is None else (lambda h, w: _asked(processor, h, w))
    return ModelFigures(
        source=source,
        num_parameters=num_parameters,
        num_vision_parameters=num_vision,
        num_adapter_parameters=adapter,
        text=Stack(
            num_layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            is_gated=True,
            norm_in_float32=True,
        ),
        vision=(
            Stack(
                num_layers=vision.depth if is_qwen else vision.num_hidden_layers,
                hidden_size=vision.hidden_size,
                intermediate_size=vision.intermediate_size,
                is_gated=is_qwen,
                norm_in_float32=is_qwen,
            ),
        ),
        num_kv_heads=text.num_key_value_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocabulary_size=text.vocab_size,
        tokens_of_image=tokens,
        patches_of_image=(lambda h, w: _qwen_patches(h, w, side, vision.patch_size))
        if is_qwen
        else (lambda h, w: (vision.image_size // vision.patch_size) ** 2),
    )


def _qwen_patches(height: int, width: int, side: int, patch_size: int) -> int:
    """Qwen-VL rounds both sides to multiples of a merged patch (`smart_resize`, far from its limits on pixels)."""
    return round(height / side) * side * round(width / side) * side // patch_size**2


def _qwen_tokens(height: int, width: int, side: int) -> int:
    """A token for each merged patch, and one mark before and behind."""
    return round(height / side) * round(width / side) + 2


def _asked(processor: PolicyProcessor, height: int, width: int) -> int:
    import numpy as np

    return len(processor.expand(processor.vocabulary.image_ids, [np.zeros((height, width, 3), np.uint8)]))
