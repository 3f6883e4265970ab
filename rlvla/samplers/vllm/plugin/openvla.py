"""OpenVLA in vLLM: this project's towers and projector before vLLM's Llama; several images, anywhere in a prompt.

vLLM 0.32 has an OpenVLA of its own (model_executor/models/openvla.py): one image at a fixed place, two towers of timm's
at 224 pixels. This one reads the same checkpoints, and those that `rlvla.policies.models.openvla` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from rlvla.policies.models.openvla.config import OpenVLAConfig
from rlvla.policies.models.openvla.processor import IMAGE_TOKEN, PrismaticProcessor
from rlvla.policies.models.openvla.vision import Projector, VisionBackbone


class OpenVLAInfo(BaseProcessingInfo):
    """Sizes of images and prompts."""

    def get_hf_config(self) -> OpenVLAConfig:
        """The checkpoint's."""
        return self.ctx.get_hf_config(OpenVLAConfig)

    def get_hf_processor(self, **kwargs: object) -> PrismaticProcessor:
        """The checkpoint's; published files do not say how many tokens an image has."""
        processor = self.ctx.get_hf_processor(PrismaticProcessor, **kwargs)
        processor.image_seq_len = self.get_hf_config().num_patches
        return processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Every image is resized to the same number of patches."""
        return {"image": self.get_hf_config().num_patches}


class OpenVLADummyInputs(BaseDummyInputsBuilder[OpenVLAInfo]):
    """What vLLM measures memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """As many placeholders as images."""
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Blank images of the towers' size."""
        side = self.info.get_hf_config().towers[0].image_size
        images = self._get_dummy_images(
            width=side, height=side, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": images}


class OpenVLAProcessor(BaseMultiModalProcessor[OpenVLAInfo]):
    """Images -> pixels, one entry each, and each placeholder -> the tokens of its image."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> Any:
        images = list(hf_data["images"])  # one prompt's; vLLM writes their tokens into it itself
        return self.info.get_hf_processor().image_processor(images, return_tensors="pt")

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"pixel_values": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        config = self.info.get_hf_config()
        placeholder = config.image_token_index
        assert placeholder is not None
        patches = [placeholder] * config.num_patches
        return [PromptReplacement(modality="image", target=[placeholder], replacement=patches)]


@MULTIMODAL_REGISTRY.register_processor(OpenVLAProcessor, info=OpenVLAInfo, dummy_inputs=OpenVLADummyInputs)
class OpenVLA(nn.Module, SupportsMultiModal, SupportsLoRA):
    """Parameters have the published names; adapters are of Llama's layers."""

    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Of a chat message."""
        return IMAGE_TOKEN

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config: Any = vllm_config.model_config.hf_config
        config = self.config
        with self._mark_tower_model(vllm_config, "image"):
            self.vision_backbone = VisionBackbone(config)
            self.projector = Projector(config)
        with self._mark_language_model(vllm_config):
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["LlamaForCausalLM"],
            )

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which parts are what."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="projector", tower_model="vision_backbone"
        )

    def get_language_model(self) -> nn.Module:
        """Llama."""
        return self.language_model

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """`pixel_values` [N, C, S, S] -> [N, P, D]."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return []
        assert isinstance(pixels, torch.Tensor)
        return self.projector(self.vision_backbone(pixels.to(self.projector.fc1.weight.dtype)))

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """Tokens or their embeddings [T, D] -> hidden states [T, D]."""
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[T, D] -> [T, vocabulary]."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load {published name: weight}."""
        return AutoWeightsLoader(self).load_weights(weights)
