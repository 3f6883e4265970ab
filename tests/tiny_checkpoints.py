"""Tiny random-weight checkpoints of every architecture that the code path of published ones is tested with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlvla.config import TinyModelConfig
from rlvla.policies.models.tiny_vlm import build_tiny, train_tokenizer
from rlvla.policies.thinker.vocabulary import action_tokens

ARCHITECTURES = ("idefics3", "qwen2_5_vl", "smolvlm", "qwen3_vl")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""In the manner of Qwen's."""


def build(architecture: str, corpus: Sequence[str], num_bins: int, **sizes: int) -> tuple[Any, Any]:
    """(Hugging Face model, processor); `sizes` as in `TinyModelConfig`."""
    if architecture == "qwen3_vl":
        return _qwen3_vl(corpus, num_bins)
    if architecture == "smolvlm":
        return _smolvlm(corpus, num_bins, **sizes)
    return build_tiny(TinyModelConfig(architecture=architecture, **sizes), corpus, num_bins, seed=0)


def _smolvlm(corpus: Sequence[str], num_bins: int, **sizes: int) -> tuple[Any, Any]:
    """An Idefics3 by another name, with a processor of its own."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor, SmolVLMVideoProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    twin, processor = build_tiny(TinyModelConfig(**sizes), corpus, num_bins, seed=0)
    settings = twin.config.to_dict()
    settings["vision_config"]["model_type"] = "smolvlm_vision"
    del settings["model_type"], settings["architectures"]
    config = SmolVLMConfig(**settings)
    model = SmolVLMForConditionalGeneration(config).float().eval()
    model.load_state_dict(twin.state_dict())
    edge = {"longest_edge": config.vision_config.image_size}
    return model, SmolVLMProcessor(
        image_processor=SmolVLMImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer=processor.tokenizer,
        video_processor=SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=processor.image_seq_len,
    )


def _qwen3_vl(corpus: Sequence[str], num_bins: int) -> tuple[Any, Any]:
    """Deepstack features and interleaved rotary sections, and a chat template."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")
    tokenizer = train_tokenizer([*corpus, "user assistant"], [*names, *action_tokens(num_bins)])
    tokenizer.chat_template = CHAT_TEMPLATE
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    spread = {"initializer_range": 0.08}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **spread,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 8,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            **spread,
        },
        tie_word_embeddings=False,
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
        image_token_id=ids[2],
        video_token_id=ids[3],
        **spread,
    )
    torch.manual_seed(0)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(size={"shortest_edge": 16**2, "longest_edge": 64**2}, patch_size=8),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=8),
        chat_template=CHAT_TEMPLATE,
    )
    return Qwen3VLForConditionalGeneration(config).float().eval(), processor
