"""Published OpenVLA folders: read whole or refused by name, adapters merged, written back byte by byte."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file

from rlvla.policies.models import auto
from rlvla.policies.models.openvla.checkpoint import CheckpointError, load_checkpoint
from tests import openvla_checkpoints as published

NORM = "language_model.model.norm.weight"
LINEAR = ["qkv", "proj", "fc1", "fc2", "fc3", "q", "kv", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
LINEAR += ["up_proj", "down_proj", "lm_head"]
"""What peft writes for openvla-oft's `all-linear`; `proj` is also the towers' convolution."""


@pytest.mark.parametrize(
    ("is_fused", "num_shards", "prefix"),
    [(True, 1, ""), (True, 3, "module."), (False, 1, "base_model.model."), (True, 1, "module.base_model.model.")],
)
def test_every_weight_is_read_and_written_back_byte_for_byte(tmp_path, is_fused, num_shards, prefix):
    """Under published names, and under those that training scripts and timm give them."""
    folder, out = tmp_path / "in", tmp_path / "out"
    weights = {name: t.bfloat16() for name, t in published.write_published(folder, is_fused=is_fused).items()}
    (folder / "model.safetensors").unlink()
    factor = "gamma" if prefix else "scale_factor"
    named = {prefix + name.replace("scale_factor", factor): tensor for name, tensor in weights.items()}
    published.write_weights(folder, named, num_shards)
    model = load_checkpoint(folder, dtype=torch.bfloat16)
    auto.save_model(model, out, model.state_dict())
    again = load_file(out / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all(again[name].dtype == t.dtype and torch.equal(again[name], t) for name, t in weights.items())
    assert json.loads((out / "dataset_statistics.json").read_text()) == published.NORM_STATS
    assert load_checkpoint(out).config.action_ids == model.config.action_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {
                "action_head.fc1.weight": torch.zeros(2),
                **{name: t for name, t in weights.items() if not name.startswith("projector.") and name != NORM},
            },
            rf"7 weights missing: {NORM}, projector\.fc1\.bias, projector\.fc1\.weight, \.\.\.; "
            r"1 weights unknown: action_head\.fc1\.weight$",
        ),
        (
            lambda weights: {**weights, NORM: torch.ones(65)},
            rf"1 weights of another shape: {NORM} \[65\] instead of \[64\]",
        ),
        (lambda weights: {**weights, f"module.{NORM}": torch.ones(64)}, f"{NORM} is there twice"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    weights = published.write_published(tmp_path)
    published.write_weights(tmp_path, change(weights))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_a_missing_shard_is_named(openvla, tmp_path):
    """transformers would start what is missing at random, and warn."""
    torn = shutil.copytree(openvla, tmp_path / "torn")
    (torn / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"torn lacks model-00002-of-00003\.safetensors"):
        auto.load_model(torn, torch.float32)


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
def test_a_folder_without_weights_says_what_it_is(tmp_path, files, message, has_config):
    folder = tmp_path / "published"
    folder.mkdir()
    if has_config:
        (folder / "config.json").write_text(json.dumps(published.published_config()))
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@torch.no_grad()
def test_an_adapter_of_all_layers_is_merged_the_towers_convolution_too(openvla, tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=LINEAR, init_lora_weights="gaussian")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load_checkpoint(openvla), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path)
    base, merged = load_checkpoint(openvla), auto.load_model(openvla, torch.float32, tmp_path)
    patches = [published.NUM_WORDS + 1] * published.NUM_PATCHES
    pixels = torch.randn(1, 6, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": torch.tensor([[1, *patches, 50, 60]]), "pixel_values": pixels}
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert (merged(**inputs).logits - base(**inputs).logits).abs().max() > 0.1
    torch.testing.assert_close(merged(**inputs).logits, adapted(**inputs).logits, atol=5e-5, rtol=0)
    assert sum(not p.requires_grad for p in merged.parameters()) == 14 + 2 + 12 + 2 + 13  # blocks, norms, pooling


def test_statistics_of_fine_tuning_win_over_those_of_the_base(openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "tuned")
    other = {"mine": published.NORM_STATS["libero_spatial_no_noops"]}
    (folder / "dataset_statistics.json").write_text(json.dumps(other))
    assert load_checkpoint(folder).config.norm_stats == other
    (folder / "dataset_statistics.json").unlink()
    assert load_checkpoint(folder).config.norm_stats == published.NORM_STATS
