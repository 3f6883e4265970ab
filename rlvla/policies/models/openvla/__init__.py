"""OpenVLA and OpenVLA-OFT without remote code, timm or torchvision: config, model, processor, checkpoints."""

from __future__ import annotations


def register() -> None:
    """Make transformers' `Auto` classes read OpenVLA folders, published ones too; calling it again changes nothing."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    from rlvla.policies.models.openvla.config import OpenVLAConfig
    from rlvla.policies.models.openvla.model import OpenVLAForConditionalGeneration
    from rlvla.policies.models.openvla.processor import PrismaticImageProcessor, PrismaticProcessor

    AutoConfig.register("openvla", OpenVLAConfig, exist_ok=True)
    AutoModelForImageTextToText.register(OpenVLAConfig, OpenVLAForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(OpenVLAConfig, image_processor_classes={"pil": PrismaticImageProcessor}, exist_ok=True)
    AutoProcessor.register(OpenVLAConfig, PrismaticProcessor, exist_ok=True)
