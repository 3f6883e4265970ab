"""Demonstrations become the turns that a policy would have sampled, and a policy to begin with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import ActionDecoding, LoraConfig, SFTConfig, TinyModelConfig
from rlvla.data.dataset import DatasetError, DemonstrationSet, read
from rlvla.data.types import Demonstration
from rlvla.policies.family import note_trained
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.models import auto
from rlvla.policies.thinker.cold_start import start_policy
from rlvla.policies.thinker.demonstrating import to_turn
from rlvla.policies.thinker.policy import save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.vocabulary import add_slots
from rlvla.policies.weights import load_model, named_weights, prepare
from tests import parallel_policies as tiny
from tests.deciding import demonstrated
from tests.examples import write_dataset

VIEW = np.full((64, 64, 3), 90, np.uint8)
CROP = np.full((64, 64, 3), 200, np.uint8)


def demonstration(**changes: object) -> Demonstration:
    given = Demonstration(
        instruction="press the red pad",
        images=(VIEW,),
        proprio=np.zeros(4, np.float32),
        texts=(print_think("look 100 200") + print_zoom(0, (0, 5, 100, 200)), print_think("press 100 200")),
        crops=(CROP,),
        actions=np.linspace(-0.9, 0.9, 8, dtype=np.float32).reshape(2, 4),
    )
    return replace(given, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
@pytest.mark.parametrize("texts", [1, 2])
def test_a_demonstration_is_the_turn_that_the_policy_would_have_sampled(
    tmp_path: Path, texts: int, decoding: ActionDecoding
) -> None:
    policy = PolicyProcessor.load(tiny.save("idefics3", tmp_path, action_decoding=decoding))
    demo = demonstration()
    actions = policy.codec.decode(np.arange(policy.decoding.num_actions))
    demo = replace(demo, texts=demo.texts[-texts:], crops=demo.crops[: texts - 1], actions=actions)
    expected = demonstrated(policy, demo).turn
    turn = to_turn(policy, demo)
    assert turn.token_ids.tolist() == expected.token_ids.tolist()
    assert turn.loss_mask.tolist() == expected.loss_mask.tolist()
    assert [(s.kind, s.start, s.end) for s in turn.segments] == [(s.kind, s.start, s.end) for s in expected.segments]
    assert all(np.array_equal(a, b) for a, b in zip(turn.images, expected.images, strict=True))


def test_an_annotation_that_breaks_the_markup_is_quoted(tiny_policy: Path) -> None:
    processor = PolicyProcessor.load(tiny_policy)
    with pytest.raises(DatasetError, match=r"look here<tool>"):
        to_turn(processor, demonstration(texts=("<think>look here<tool>", "<think>press</think>")))


def data_set(path: Path, chunk_length: int = 2) -> DemonstrationSet:
    rng = np.random.default_rng(0)
    shape = (chunk_length, 4)
    episodes = [[demonstration(actions=rng.uniform(-1, 1, shape).astype(np.float32))] for _ in range(20)]
    write_dataset(path, episodes, robot="test", fps=1.0, suites=("new",))
    return read(path)


def test_a_new_tiny_policy_fits_the_data(tmp_path: Path) -> None:
    demonstrations = data_set(tmp_path / "demos")
    small = TinyModelConfig(hidden_size=64, num_layers=1, vision_layers=1)
    model, processor = start_policy(SFTConfig(tiny=small, num_bins=16), demonstrations)
    assert (processor.settings.prefix_attention, processor.settings.action_decoding) == ("causal", "autoregressive")
    assert processor.codec.chunk_shape == (2, 4)
    assert processor.settings.views == tuple(image.shape[:2] for image in demonstration().images) != ()
    assert len(processor.vocabulary.action_ids) == 16
    assert model.get_input_embeddings().num_embeddings >= len(processor.hf_processor.tokenizer)
    actions = demonstrations[0].actions
    decoded = processor.codec.decode(processor.codec.encode(actions))
    assert np.abs(decoded - actions)[:, :3].max() < 2 / 16  # one bin
    assert (np.sign(decoded) == np.sign(actions))[:, 3].all()  # the gripper is open or closed


def test_a_given_checkpoint_keeps_its_weights_and_learns_the_markup(tmp_path: Path, tiny_policy: Path) -> None:
    given = shutil.copytree(tiny_policy, tmp_path / "given")
    note_trained(given, "old")
    cfg = SFTConfig(model=str(given), num_bins=32)  # the checkpoint has 16 action tokens
    model, processor = start_policy(cfg, data_set(tmp_path / "demos"))
    before = PolicyProcessor.load(tiny_policy)
    assert len(processor.vocabulary.action_ids) == 32
    assert processor.settings.trained_suites == ("new", "old")
    assert processor.vocabulary.action_ids[:16] == before.vocabulary.action_ids
    assert model.get_input_embeddings().num_embeddings >= len(processor.hf_processor.tokenizer)
    turn = to_turn(processor, demonstration())
    assert turn.token_ids.max() < model.get_input_embeddings().num_embeddings


def trained_policy(path: Path, tiny_policy: Path, **changes: Any) -> PolicyProcessor:
    """A policy that has learned before, with settings that no config has by default."""
    model, processor = load_model(tiny_policy), PolicyProcessor.load(tiny_policy)
    codec = replace(processor.codec, low=(-3.0,) * 4, gripper_dim=3)
    processor = replace(processor, settings=replace(processor.settings, codec=codec, **changes))
    save_policy(model, processor, path)
    return processor


def test_a_policy_that_is_trained_further_stays_what_it_is(tmp_path: Path, tiny_policy: Path) -> None:
    before = trained_policy(tmp_path / "policy", tiny_policy, prefix_attention="bidirectional")
    cfg = SFTConfig(model=str(tmp_path / "policy"), action_decoding="parallel_causal")
    first = start_policy(cfg, data_set(tmp_path / "a"))
    save_policy(*first, tmp_path / "parallel")
    _, again = start_policy(SFTConfig(model=str(tmp_path / "parallel")), data_set(tmp_path / "b"))
    assert (again.settings.prefix_attention, again.settings.action_decoding) == ("bidirectional", "parallel_causal")
    assert again.decoding.at_once
    assert again.codec == before.codec  # not fitted to the new data set: action tokens mean what they meant
    assert again.vocabulary.action_ids == before.vocabulary.action_ids
    told = SFTConfig(
        model=str(tmp_path / "parallel"),
        prefix_attention="causal",
        action_decoding="autoregressive",
        statistics_key="demonstrations",
    )
    demonstrations = data_set(tmp_path / "c")
    _, other = start_policy(told, demonstrations)
    assert (other.settings.prefix_attention, other.decoding.at_once) == ("causal", False)
    assert (other.codec.num_bins, other.codec.low[0]) == (16, pytest.approx(-0.98, abs=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gripper_dim": None}, r"gripper_dim is None, that of .*policy 3: set it alike; or set statistics_key demon"),
        ({"dataset": "longer"}, r"dataset: .*longer has chunks of actions \[3, 4\], .*policy takes \[2, 4\]; or set"),
    ],
)
def test_what_does_not_fit_the_codec_of_a_policy_is_named(
    tmp_path: Path, tiny_policy: Path, changes: dict[str, Any], message: str
) -> None:
    trained_policy(tmp_path / "policy", tiny_policy)
    length = 3 if "dataset" in changes else 2
    demonstrations = data_set(tmp_path / "longer", length)
    cfg = replace(SFTConfig(model=str(tmp_path / "policy"), dataset=tmp_path / "longer"), **changes)
    with pytest.raises(ValueError, match=message):
        start_policy(cfg, demonstrations)
    _, processor = start_policy(replace(cfg, statistics_key="demonstrations"), demonstrations)
    assert processor.codec.chunk_shape == (length, 4)


def test_a_given_adapter_is_merged_into_the_checkpoint(tmp_path: Path, tiny_policy: Path) -> None:
    lora = LoraConfig(rank=2, target_modules=("q_proj",))
    adapted = prepare(auto.load_model(tiny_policy, torch.float32), lora=lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    cfg = SFTConfig(model=str(tiny_policy), adapter=tmp_path / "adapter", num_bins=16, gripper_dim=None)
    model, _ = start_policy(cfg, data_set(tmp_path / "demos"))
    started, expected = dict(named_weights(model)), dict(named_weights(adapted))
    torch.testing.assert_close(started, expected)


@pytest.mark.parametrize("is_given", [False, True])
def test_a_parallel_policy_starts_with_slots_of_zeros(tmp_path, tiny_policy, is_given):
    cfg = SFTConfig(
        model=str(tiny_policy) if is_given else "",
        tiny=TinyModelConfig(hidden_size=64, num_layers=1, vision_layers=1),
        num_bins=16,
        statistics_key="demonstrations",  # whose chunks have another shape than the given policy's
        action_decoding="parallel",
    )
    model, processor = start_policy(cfg, data_set(tmp_path / "demos", chunk_length=3))
    slots, size = list(processor.vocabulary.slot_ids), len(processor.hf_processor.tokenizer)
    assert slots == list(range(size - 12, size))
    assert (model.get_input_embeddings().weight[slots] == 0).all()
    save_policy(model, processor, tmp_path / "policy")
    again = PolicyProcessor.load(tmp_path / "policy")
    assert (again.decoding.at_once, list(again.vocabulary.slot_ids)) == (True, slots)
    with torch.no_grad():
        model.get_input_embeddings().weight[slots] = 1
    add_slots(model, processor.hf_processor, 12)  # they are there: what they learned stays
    assert (model.get_input_embeddings().weight[slots] == 1).all()
    add_slots(model, processor.hf_processor, 14)  # a longer chunk
    assert model.get_input_embeddings().weight[slots[0] :].sum(1).tolist() == [64] * 12 + [0] * 2
