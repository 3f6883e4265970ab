"""Published OpenVLA folders: read whole or refused by name, adapters merged, written back byte by byte."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlvla.policies.models import auto
from rlvla.policies.models.openvla.checkpoint import CheckpointError, load_checkpoint, load_processor, save_checkpoint
from rlvla.policies.thinker.actions import BinCodec
from tests import openvla_checkpoints as published

NORM = "language_model.model.norm.weight"
LINEAR = ["qkv", "proj", "fc1", "fc2", "fc3", "q", "kv", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
LINEAR += ["up_proj", "down_proj", "lm_head"]
"""What peft writes for openvla-oft's `all-linear`; `proj` is also the towers' convolution."""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "published", published.write_published(tmp_path / "published")


def write(folder, weights) -> None:
    published.write_weights(folder[0], weights)


@pytest.mark.parametrize(("is_fused", "num_shards"), [(True, 1), (True, 3), (False, 1)])
def test_every_weight_of_a_folder_is_read(tmp_path, is_fused, num_shards):
    weights = published.write_published(tmp_path, is_fused=is_fused, num_shards=num_shards)
    loaded = load_checkpoint(tmp_path).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_what_is_written_back_is_the_same_byte_for_byte(tmp_path):
    published.write_published(tmp_path / "in")
    half = {name: t.bfloat16() for name, t in load_file(tmp_path / "in/model.safetensors").items()}
    published.write_weights(tmp_path / "in", half)
    model = load_checkpoint(tmp_path / "in", dtype=torch.bfloat16)
    save_checkpoint(model, tmp_path / "out", load_processor(tmp_path / "in"))
    again = load_file(tmp_path / "out/model.safetensors")
    assert again.keys() == half.keys()
    assert all(again[name].dtype == t.dtype and torch.equal(again[name], t) for name, t in half.items())
    assert json.loads((tmp_path / "out/dataset_statistics.json").read_text()) == published.NORM_STATS
    second = load_checkpoint(tmp_path / "out", dtype=torch.bfloat16)
    assert second.config.action_ids == model.config.action_ids
    assert load_processor(tmp_path / "out").image_token_id == second.config.image_token_id


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "module.base_model.model."])
def test_prefixes_of_training_scripts_and_timms_own_name_of_layer_scale_are_mapped(folder, prefix):
    path, weights = folder
    write(folder, {prefix + name.replace("scale_factor", "gamma"): t for name, t in weights.items()})
    loaded = load_checkpoint(path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_no_renaming_is_left_in_what_is_written_back(folder, tmp_path):
    path, weights = folder
    write(folder, {f"module.{name}": t for name, t in weights.items()})
    save_checkpoint(load_checkpoint(path), tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors").keys() == weights.keys()


def test_missing_and_unknown_weights_are_refused_by_name(folder):
    path, weights = folder
    kept = {name: t for name, t in weights.items() if not name.startswith("projector.") and name != NORM}
    write(folder, kept | {"action_head.fc1.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert "7 weights missing: language_model.model.norm.weight, projector.fc1.bias, projector.fc1" in str(error.value)
    assert "fc1.weight, ...; 1 weights unknown: action_head.fc1.weight" in str(error.value)


def test_weights_of_another_shape_are_refused_by_name(folder):
    path, weights = folder
    write(folder, {**weights, NORM: torch.ones(65)})
    with pytest.raises(CheckpointError, match=rf"1 weights of another shape: {NORM} \[65\] instead of \[64\]"):
        load_checkpoint(path)


def test_a_weight_that_is_there_twice_is_refused(folder):
    path, weights = folder
    write(folder, {**weights, f"module.{NORM}": weights[NORM].clone()})
    with pytest.raises(CheckpointError, match=f"{NORM} is there twice"):
        load_checkpoint(path)


def test_a_missing_shard_is_named(tmp_path):
    published.write_published(tmp_path, num_shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"], "not needed here"),
        (["lora_adapter/adapter_config.json", "action_head--latest_checkpoint.pt"], "adapter to .*/lora_adapter$"),
        (["adapter_model.safetensors"], "set model to what it was trained on, and adapter to .*/published$"),
        (["vision_backbone--1_checkpoint.pt"], "pickles"),
        (["pytorch_model.bin"], "pickles"),
        ([], "no checkpoint"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_a_folder_without_weights_says_what_it_is(folder, files, message, has_config):
    path, _ = folder
    (path / "model.safetensors").unlink()
    if not has_config:
        (path / "config.json").unlink()
    for file in files:
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).touch()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def with_adapter(path, tmp_path):
    """A model under an adapter that acts, and the folder that peft writes of it."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=LINEAR, init_lora_weights="gaussian")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load_checkpoint(path), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "lora_adapter")
    return adapted, tmp_path / "lora_adapter"


def inputs() -> dict[str, torch.Tensor]:
    patches = [published.NUM_WORDS + 1] * published.NUM_PATCHES
    pixels = torch.randn(1, 6, 28, 28, generator=torch.Generator().manual_seed(0))
    return {"input_ids": torch.tensor([[1, *patches, 50, 60]]), "pixel_values": pixels}


@torch.no_grad()
def test_a_lora_adapter_is_merged(folder, tmp_path):
    path, weights = folder
    adapted, adapter = with_adapter(path, tmp_path)
    merged = auto.load_model(path, torch.float32, adapter)
    assert merged.state_dict().keys() == weights.keys()
    assert (merged(**inputs()).logits - load_checkpoint(path)(**inputs()).logits).abs().max() > 0.1
    torch.testing.assert_close(merged(**inputs()).logits, adapted(**inputs()).logits, atol=5e-5, rtol=0)
    assert sum(not p.requires_grad for p in merged.parameters()) == 14 + 2 + 12 + 2 + 13  # blocks, norms, pooling
    save_checkpoint(merged, tmp_path / "out")
    again = load_checkpoint(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.state_dict().items())


def test_an_adapter_of_something_else_is_refused_by_name(folder, tmp_path):
    path, _ = folder
    _, adapter = with_adapter(path, tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.projector.fc1.lora_A.weight"
    renamed = {n: t for n, t in weights.items() if n != name} | {"base_model.model.head.lora_A.weight": weights[name]}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as error:
        auto.load_model(path, torch.float32, adapter)
    assert "1 weights missing: base_model.model.projector.fc1.lora_A" in str(error.value)
    assert "1 weights unknown: base_model.model.head.lora_A" in str(error.value)


def test_statistics_of_fine_tuning_win_over_those_of_the_base(folder):
    path, _ = folder
    other = {"mine": published.NORM_STATS["libero_spatial_no_noops"]}
    (path / "dataset_statistics.json").write_text(json.dumps(other))
    assert load_checkpoint(path).config.norm_stats == other
    (path / "dataset_statistics.json").unlink()
    assert load_checkpoint(path).config.norm_stats == published.NORM_STATS


def test_a_checkpoints_codec_decodes_its_action_tokens(folder):
    config = load_checkpoint(folder[0]).config
    codec = BinCodec.from_norm_stats(config.norm_stats, num_bins=config.n_action_bins, chunk_length=1, gripper_dim=-1)
    ids = [config.action_ids[symbol] for symbol in codec.encode(np.array([[0.0625, 0.25, -1.0]]))]
    assert ids == [639 - 127, 639 - 255, 639 - 255]  # the middle, the upper edge, an open gripper
