"""What is fuzzed in folders of checkpoints: settings of a policy, OpenVLA's config and statistics, weights, an index.

torch and transformers are imported by the first run of the targets that need them.
"""

from __future__ import annotations

import json
import re

import numpy as np

from fuzz_files import FOLDER, spread
from rlvla.policies.models.lora import parse_config
from rlvla.policies.models.openvla.shards import CheckpointError, shard_names
from rlvla.policies.thinker.actions import BinCodec, QuantileCodec
from rlvla.policies.thinker.prompt import parse_settings


def checkpoint(data: bytes) -> None:
    """A policy's settings and codec, an adapter's config and an index of weights are refused, or name no other file."""
    try:
        settings = parse_settings(data, "rlvla_policy.json")
        QuantileCodec.from_dict(settings["codec"])
    except ValueError as error:
        assert str(error)
    try:
        assert parse_config(data, "adapter_config.json").r > 0
    except CheckpointError as error:
        assert "adapter_config.json" in str(error)
    try:
        names = shard_names(data, "index.json")
    except CheckpointError:
        return
    assert all("/" not in name and name.endswith(".safetensors") for name in names)


def openvla(data: bytes) -> None:
    """An OpenVLA folder's config and statistics are refused, or give action tokens and a sound codec."""
    from rlvla.policies.models import auto
    from rlvla.policies.models.openvla.checkpoint import read_norm_stats

    folder = FOLDER / "openvla"
    spread(data, folder, ("config.json", "dataset_statistics.json"))
    try:
        config = auto.load_config(folder)
        if not auto.is_openvla(config):
            return
        norm_stats = read_norm_stats(folder, config) or {}
        codec = BinCodec.from_norm_stats(norm_stats, num_bins=config.n_action_bins, chunk_length=2)
    except (OSError, ValueError) as error:
        assert str(error)
        return
    assert config.num_patches > 0
    assert len(set(config.action_ids)) == config.n_action_bins
    assert min(config.action_ids) >= 0
    actions = codec.decode(codec.encode(np.zeros(codec.chunk_shape)))
    assert np.isfinite(actions).all()


WEIGHTS = {"norm.weight": [2, 3], "blocks.0.ls1.scale_factor": [4]}
"""Name -> shape of those that the model has."""


def safetensors(data: bytes) -> None:
    """Weights are refused by the name of their place, or are those that the model has."""
    from rlvla.policies.models.openvla.checkpoint import read_weights

    folder = FOLDER / "safetensors"
    folder.mkdir(exist_ok=True)
    # The header alone is fuzzed as well, behind its right length and before as many bytes as it probably names.
    num_bytes = max(map(int, re.findall(rb"\d{1,2}", data)), default=0)
    for content in (data, len(data).to_bytes(8, "little") + data + bytes(num_bytes)):
        (folder / "model.safetensors").write_bytes(content)
        try:
            weights = read_weights(folder, WEIGHTS)
        except CheckpointError as error:
            assert str(folder) in str(error)
            continue
        assert {name: list(tensor.shape) for name, tensor in weights.items()} == WEIGHTS
        assert not any(tensor.any() for tensor in weights.values())


def openvla_seeds() -> tuple[bytes, ...]:
    """As published, with towers that timm names; and a tiny one that is spelled out."""
    row = {"q01": [-1.0, -0.5], "q99": [1.0, 0.5], "mask": [True, False]}
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 2, "num_attention_heads": 2, "num_registers": 0}
    tower |= {"patch_size": 14, "image_size": 28}
    tower |= {"has_class_token": False, "has_layer_scale": False, "has_pooling_head": True}
    published = {
        "model_type": "openvla",
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "image_sizes": [224, 224],
        "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
        "n_action_bins": 256,
        "torch_dtype": "bfloat16",
    }
    one = {"model_type": "openvla", "vision_backbone_id": "siglip-vit-so400m", "vision_towers": [tower]}
    norm_stats = {"push": {"action": row, "num_transitions": 9}}
    return (
        json.dumps(published).encode() + b"\0" + json.dumps(norm_stats).encode(),
        json.dumps(one | {"norm_stats": norm_stats, "pad_to_multiple_of": 64}).encode(),
    )


def header(dtype: str, num_bits: int) -> bytes:
    """Of a safetensors file with `WEIGHTS` under names that training scripts give them."""
    ends = (6 * num_bits // 8, 10 * num_bits // 8)
    tensors = {
        "module.norm.weight": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, ends[0]]},
        "base_model.model.blocks.0.ls1.gamma": {"dtype": dtype, "shape": [4], "data_offsets": list(ends)},
    }
    return json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
