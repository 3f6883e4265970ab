"""The config of OpenVLA: what published files say, what they leave out, and what is refused."""

from __future__ import annotations

import json

import pytest

from rlvla.policies.models.openvla.config import OpenVLAConfig
from tests import openvla_checkpoints as published

PUBLISHED = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "llama2-7b-pure",
    "image_sizes": [224, 224],
    "pad_token_id": 32000,
    "pad_to_multiple_of": 64,
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "use_fused_vision_backbone": True,
    "torch_dtype": "bfloat16",
    "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
}


def test_the_published_file_means_llama_2_7b_behind_two_towers_of_256_patches():
    config = OpenVLAConfig(**PUBLISHED)
    text = config.get_text_config()
    sizes = (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads)
    assert sizes == (4096, 11008, 32, 32)
    # Llama 2 itself has 1e-5; published OpenVLA has what the file leaves out, transformers' default.
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (1e-6, 10000.0)
    assert [tower.hidden_size for tower in config.towers] == [1024, 1152]
    assert config.num_patches == 256
    assert not hasattr(config, "auto_map")
    assert (config.pad_token_id, config.image_token_id) == (32000, 32001)  # the first row that publishing left unused
    ids = config.action_ids  # the last 256 words, from behind
    assert (ids[0], ids[1], ids[255], len(ids)) == (31999, 31998, 31744, 256)


def test_what_was_saved_is_read_again(tmp_path):
    config = OpenVLAConfig(**published.published_config())
    config.save_pretrained(tmp_path)
    again = OpenVLAConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in ("arch_specifier", "timm_model_ids", "image_sizes", "norm_stats", "hf_llm_id", "pad_to_multiple_of"):
        assert saved[name] == published.published_config()[name]


def test_one_tower_is_siglip_alone():
    config = OpenVLAConfig(vision_backbone_id="siglip-vit-so400m")
    assert [tower.num_layers for tower in config.towers] == [27]
    assert config.use_fused_vision_backbone is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_backbone_id": "clip-vit-l", "timm_model_ids": None}, "'clip-vit-l'"),
        ({"timm_model_ids": ["vit_huge", "vit_so400m_patch14_siglip_224"]}, "'vit_huge'"),
        ({"timm_override_act_layers": [None, "quick_gelu"]}, "quick_gelu"),
        ({"use_fused_vision_backbone": False}, "names 2 towers"),
        ({"text_config": {"model_type": "mistral"}}, "'mistral'"),
        ({"text_config": {"vocab_size": 300}}, r"vocab_size is 300.*action_token_end \(236\)"),
        ({"text_config": {"vocab_size": 32064}, "image_token_index": 40000}, "40000"),
        ({"image_sizes": [224, 448]}, r"\[256, 1024\] patches"),
        ({"vision_towers": [{**published.DINOV2, "num_layers": 1}, published.SIGLIP]}, "num_layers is 1"),
        ({"vision_towers": [{**published.DINOV2, "depth": 1}, published.SIGLIP]}, "depth"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        OpenVLAConfig(**{**PUBLISHED, **changes})
