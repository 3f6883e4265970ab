"""LoRA adapters that somebody trained with peft, merged into the model that a cold start begins with."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlvla.config import LoraConfig
from rlvla.policies.models import auto
from rlvla.policies.models.openvla.checkpoint import CheckpointError
from rlvla.policies.weights import named_weights, prepare
from tests import parallel_policies

LORA = LoraConfig(rank=2, alpha=4.0)


def train_adapter(model: Path, folder: Path) -> Any:
    """A model under an adapter that acts, and peft's files of the adapter in `folder`."""
    torch.manual_seed(0)
    adapted = prepare(auto.load_model(model, torch.float32), lora=LORA)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return adapted


def trained_of(model: Any) -> dict[str, bool]:
    """Name of a parameter -> whether it is trained."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", parallel_policies.ARCHITECTURES)
def test_an_adapter_is_merged_into_every_kind_of_model_that_trains_on(architecture: str, tmp_path: Path) -> None:
    path, adapter = parallel_policies.save(architecture, tmp_path), tmp_path / "adapter"
    adapted = train_adapter(path, adapter)
    merged, base = auto.load_model(path, torch.float32, adapter), auto.load_model(path, torch.float32)
    ours, expected = dict(named_weights(merged)), dict(named_weights(adapted))
    assert ours.keys() == expected.keys()
    torch.testing.assert_close(ours, expected)
    moved = [name for name, weight in named_weights(base) if not torch.equal(weight, ours[name])]
    assert len(moved) == len(load_file(adapter / "adapter_model.safetensors")) / 2  # A and B of each
    assert trained_of(merged) == trained_of(base)
    assert merged.training == base.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft would say that it finds an adapter there
        assert prepare(merged, lora=LORA).num_parameters() > base.num_parameters()


def test_a_folder_without_an_adapter_is_named_before_the_model_is_read(tiny_policy: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(tiny_policy, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    adapter = tmp_path / "adapter"
    with pytest.raises(CheckpointError, match=r"adapter: .*adapter holds no adapter_config\.json"):
        auto.load_model(empty, torch.float32, adapter)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"holds no adapter_model\.safetensors; pickled adapters are not read"):
        auto.load_model(empty, torch.float32, adapter)


def test_an_adapter_of_another_model_is_refused_by_name(tiny_policy: Path, tmp_path: Path) -> None:
    train_adapter(tiny_policy, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    deeper = {name.replace("layers.1", "layers.7"): weight for name, weight in weights.items()}
    save_file(deeper, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"14 weights missing: .*layers\.1.*; 14 weights unknown: .*layers\.7"):
        auto.load_model(tiny_policy, torch.float32, tmp_path)


def adapter_with_a_head(model: Path, folder: Path, modules: list[str], **options: Any) -> Any:
    """An adapter that replaces some modules as a whole, in memory and in `folder`."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=modules, **options)
    adapted = peft.get_peft_model(auto.load_model(model, torch.float32), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("architecture", ["openvla", "qwen3_vl"])  # whose heads are not tied
def test_a_module_that_an_adapter_replaces_is_taken_and_trains_on(architecture: str, tmp_path: Path) -> None:
    path, adapter = parallel_policies.save(architecture, tmp_path), tmp_path / "adapter"
    adapted = adapter_with_a_head(path, adapter, ["lm_head"])
    merged, base = auto.load_model(path, torch.float32, adapter), auto.load_model(path, torch.float32)
    (head,) = (weight for name, weight in adapted.named_parameters() if "modules_to_save" in name)
    assert torch.equal(merged.get_output_embeddings().weight, head)
    assert any(torch.equal(weight, head) for _, weight in named_weights(merged))
    assert trained_of(merged) == trained_of(base)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({n: w for n, w in weights.items() if "lm_head" not in n}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: 1 weights missing: .*lm_head\.weight"):
        auto.load_model(path, torch.float32, adapter)


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]], ids=str)
def test_an_adapter_that_tears_tied_weights_apart_is_refused(
    tiny_policy: Path, tmp_path: Path, modules: list[str]
) -> None:
    adapter_with_a_head(tiny_policy, tmp_path, modules)
    with pytest.raises(CheckpointError, match=r"replace lm_head\.weight or .*embed_tokens\.weight, which .* ties"):
        auto.load_model(tiny_policy, torch.float32, tmp_path)


def test_an_adapter_that_replaces_tied_weights_as_one_is_taken(tiny_policy: Path, tmp_path: Path) -> None:
    adapted = adapter_with_a_head(tiny_policy, tmp_path, ["embed_tokens"], ensure_weight_tying=True)
    merged = auto.load_model(tiny_policy, torch.float32, tmp_path)
    (weight,) = (weight for name, weight in adapted.named_parameters() if "modules_to_save" in name)
    assert torch.equal(merged.get_input_embeddings().weight, weight)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert merged.get_input_embeddings().weight.requires_grad
    assert merged.config.tie_word_embeddings
