"""What is fuzzed in checkpoints: settings of a policy, OpenVLA's config and statistics, weights, an index."""

from __future__ import annotations

import json
import re

import numpy as np

from rlvla.policies.models.lora import parse_config
from rlvla.policies.models.openvla.shards import CheckpointError, shard_names
from rlvla.policies.thinker.actions import BinCodec
from rlvla.policies.thinker.settings import parse_settings
from target import FOLDER, refused, spread, target, written

_CODEC = {"low": [-1.0], "high": [1.0], "num_bins": 16, "chunk_length": 2, "gripper_dim": None}


@target(
    json.dumps({"codec": _CODEC, "trained_suites": ["s"]}).encode(),
    b'{"weight_map": {"a": "model-1.safetensors", "b": "../x.safetensors"}}',
    b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "target_modules": "a.*", '
    b'"trainable_token_indices": {"model.embed_tokens": [5, 6]}}',
    max_bytes=1024,
)
def checkpoint(data: bytes) -> None:
    """A policy's settings and codec, an adapter's config and an index of weights are refused, or name no other file."""
    with refused(ValueError, ""):
        assert parse_settings(data, "rlvla_policy.json").codec.num_bins > 1
    with refused(CheckpointError, "adapter_config.json"):
        assert parse_config(data, "adapter_config.json").r > 0
    with refused(CheckpointError, ""):
        names = shard_names(data, "index.json")
        assert all("/" not in name and name.endswith(".safetensors") for name in names)


_ROW = {"q01": [-1.0, -0.5], "q99": [1.0, 0.5], "mask": [True, False]}
_NORM_STATS = {"push": {"action": _ROW, "num_transitions": 9}}
_PUBLISHED = {
    "model_type": "openvla",
    "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "image_sizes": [224, 224],
    "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
    "n_action_bins": 256,
    "torch_dtype": "bfloat16",
}
_TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 2, "num_attention_heads": 2, "num_registers": 0}
_TOWER |= {"patch_size": 14, "image_size": 28}
_TOWER |= {"has_class_token": False, "has_layer_scale": False, "has_pooling_head": True}
_TINY = {"model_type": "openvla", "vision_backbone_id": "siglip-vit-so400m", "vision_towers": [_TOWER]}


@target(
    json.dumps(_PUBLISHED).encode() + b"\0" + json.dumps(_NORM_STATS).encode(),
    json.dumps(_TINY | {"norm_stats": _NORM_STATS, "pad_to_multiple_of": 64}).encode(),
)
def openvla(data: bytes) -> None:
    """An OpenVLA folder's config and statistics are refused, or give action tokens and a sound codec."""
    from rlvla.policies.models import auto  # loads torch and transformers, which other targets do without
    from rlvla.policies.models.openvla.checkpoint import read_norm_stats

    spread(data, "openvla/config.json", "openvla/dataset_statistics.json")
    with refused(OSError, ""), refused(ValueError, ""):
        config = auto.load_config(FOLDER / "openvla")
        if not auto.is_openvla(config):
            return
        norm_stats = read_norm_stats(FOLDER / "openvla", config) or {}
        codec = BinCodec.from_norm_stats(norm_stats, num_bins=config.n_action_bins, chunk_length=2)
        assert config.num_patches > 0
        assert len(set(config.action_ids)) == config.n_action_bins
        assert min(config.action_ids) >= 0
        assert np.isfinite(codec.decode(codec.encode(np.zeros(codec.chunk_shape)))).all()


WEIGHTS = {"norm.weight": [2, 3], "blocks.0.ls1.scale_factor": [4]}
"""Name -> shape of those that the model has."""
_DTYPES = {"F32": 32, "BF16": 16, "F64": 64, "I64": 64, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4}
"""Name in safetensors files -> bits."""


def _header(dtype: str, num_bits: int) -> bytes:
    """Of a file with `WEIGHTS` under names that training scripts give them."""
    ends = (6 * num_bits // 8, 10 * num_bits // 8)
    tensors = {
        "module.norm.weight": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, ends[0]]},
        "base_model.model.blocks.0.ls1.gamma": {"dtype": dtype, "shape": [4], "data_offsets": list(ends)},
    }
    return json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()


@target(*(_header(*dtype) for dtype in _DTYPES.items()), max_bytes=512)
def safetensors(data: bytes) -> None:
    """Weights are refused by the name of their place, or are those that the model has."""
    from rlvla.policies.models.openvla.checkpoint import read_weights

    # The header alone is fuzzed as well, behind its right length and before as many bytes as it probably names.
    num_bytes = max(map(int, re.findall(rb"\d{1,2}", data)), default=0)
    for content in (data, len(data).to_bytes(8, "little") + data + bytes(num_bytes)):
        folder = written(content, "safetensors/model.safetensors").parent
        with refused(CheckpointError, folder):
            weights = read_weights(folder, WEIGHTS)
            assert {name: list(tensor.shape) for name, tensor in weights.items()} == WEIGHTS
            assert not any(tensor.any() for tensor in weights.values())
