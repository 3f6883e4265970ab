"""OpenVLA and OpenVLA-OFT (arXiv 2406.09246, 2502.19645) as a transformers model: towers, projector, Llama.

Parameters have the names of published checkpoints. Unlike the published code, which puts one image behind the first
token, images stand wherever the tokens have placeholders: any number of them, anywhere. A prompt of the first token,
one image and the rest is the published one. B rows, L tokens, N images, P patches of an image, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlvla.policies.models.openvla.config import OpenVLAConfig
from rlvla.policies.models.openvla.vision import Projector, VisionBackbone, VisionTransformer


class OpenVLAForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Images and text in, logits of the next tokens out."""

    config: OpenVLAConfig
    config_class = OpenVLAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 - as transformers declares it
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config)
        self.language_model = LlamaForCausalLM(config.get_text_config())
        self.post_init()
        self.freeze_unused()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it; loading replaces every parameter, so that `freeze_unused` must come after it."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_unused()
        return loaded

    def freeze_unused(self) -> None:
        """Take what no output depends on out of training: DDP waits for a gradient of all that is trained."""
        for module in self.vision_backbone.children():
            assert isinstance(module, VisionTransformer)
            for parameter in module.unused():
                parameter.requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace it."""
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As transformers has it; published code finds the action tokens by the rows that the config says follow them.

        It takes `pad_to_multiple_of` from the vocabulary (openvla prismatic/extern/hf/modeling_prismatic.py,
        `OpenVLAForActionPrediction.__init__`).
        """
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        assert self.config.action_token_end is not None
        self.config.pad_to_multiple_of = self.config.get_text_config().vocab_size - self.config.action_token_end
        return embeddings

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[M, C, S, S] images, normalised -> [M, P, D] embeddings of their patches."""
        dtype = self.projector.fc1.weight.dtype
        return self.projector(self.vision_backbone(pixel_values.to(dtype)))

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        num_images: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed tokens [B, L], and patches in the place of placeholders, `image_token_id` P times for each image.

        `pixel_values` are [B, N, C, S, S], or [B, C, S, S] for one image in each row, C 3 per tower; None: placeholders
        are words like others. `num_images` [B] says how many of its N a row has, the others are padding; None: all.

        Raises:
            ValueError: a row has placeholders for another number of images than it has; the message names the row.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return embeddings
        if pixel_values.dim() == 4:
            pixel_values = pixel_values[:, None]
        num_rows, most = pixel_values.shape[:2]
        counts = torch.full((num_rows,), most, device=input_ids.device) if num_images is None else num_images
        is_patch = input_ids == self.config.image_token_index
        _check_images(is_patch.sum(1), counts, self.config.num_patches)
        is_image = torch.arange(most, device=counts.device) < counts[:, None]
        features = self.get_image_features(pixel_values[is_image])
        return embeddings.masked_scatter(is_patch[..., None], features.to(embeddings.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        num_images: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Llama's output, `logits` [B, L, vocabulary]; arguments and errors as of `embed` and of Llama.

        `attention_mask` may be what Llama's attention takes as it is, too: for SDPA [B, 1, L, L], True where a token
        (third axis) sees another (fourth), for eager attention the same added to the scores, for flex its block mask.
        """
        return self.language_model(
            inputs_embeds=self.embed(input_ids, pixel_values, num_images),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )


def _check_images(num_placeholders: torch.Tensor, num_images: torch.Tensor, num_patches: int) -> None:
    """Of each row [B]; raises ValueError naming the first row whose placeholders are not those of its images."""
    wrong = (num_placeholders != num_images * num_patches).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"row {row} has {int(num_placeholders[row])} image placeholders for {int(num_images[row])} images of "
            f"{num_patches} patches"
        )
