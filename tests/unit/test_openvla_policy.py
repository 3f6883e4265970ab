"""OpenVLA as a policy of the recipes: its action tokens and statistics, its prompt by Llama's tokenizer, its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from tokenizers import normalizers

from rlvla.config import LearnerConfig, SFTConfig
from rlvla.data import dataset
from rlvla.data.dataset import DemonstrationSet
from rlvla.data.types import Demonstration
from rlvla.policies.markup import MARKS, ToolCall, parse_call, parse_text
from rlvla.policies.models import auto
from rlvla.policies.models.openvla.checkpoint import load_checkpoint
from rlvla.policies.thinker.actions import BinCodec
from rlvla.policies.thinker.cold_start import start_policy
from rlvla.policies.thinker.policy import Thinker, save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.vocabulary import add_slots, extend_vocabulary, slot_tokens
from rlvla.policies.weights import load_model
from rlvla.types import SegmentKind
from tests import examples
from tests import openvla_checkpoints as published
from tests.examples import write_dataset

KEY = "libero_spatial_no_noops"
OTHER = {"action": {**published.NORM_STATS[KEY]["action"], "q01": [-2.0, -2.0, 0.0]}}
SEVERAL = {"mine": OTHER, **published.NORM_STATS}
IMAGE = published.NUM_WORDS + 1
ACTION_IDS = tuple(range(published.NUM_WORDS - 1, published.NUM_WORDS - 257, -1))
"""The last 256 words, from behind: 31999 .. 31744 of the published ones."""
PROMPT, TEXTS = published.PROMPT, published.TEXTS


def demonstration(actions: np.ndarray) -> Demonstration:
    told = {"instruction": "Press the red pad", "texts": TEXTS, "proprio": np.zeros(4, np.float32)}
    return examples.demonstration(len(actions), side=64, **told, actions=actions.astype(np.float32))


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationSet:
    """Ten episodes of a decision each, chunks of two steps, the last of three dimensions -1 (open) or 1."""
    path, rng = tmp_path_factory.mktemp("data") / "demos", np.random.default_rng(0)
    actions = rng.uniform(-0.3, 0.2, (10, 2, 3))
    actions[..., -1] = rng.choice([-1.0, 1.0], (10, 2))
    write_dataset(path, [[demonstration(chunk)] for chunk in actions], robot="test", fps=1.0, suites=("new",))
    return dataset.read(path)


def config(folder: Path, demos: DemonstrationSet, **changes: Any) -> SFTConfig:
    return replace(SFTConfig(model=str(folder), dataset=demos.path, num_bins=256), **changes)


def with_statistics(folder: Path, path: Path, norm_stats: dict[str, Any]) -> Path:
    """A copy of a published folder, with statistics of other data sets."""
    shutil.copytree(folder, path)
    (path / "dataset_statistics.json").write_text(json.dumps(norm_stats))
    return path


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_a_published_checkpoint_keeps_its_words_and_learns_the_marks(
    openvla: Path, demos: DemonstrationSet, decoding: Any
) -> None:
    model, processor = start_policy(config(openvla, demos, action_decoding=decoding), demos)
    vocabulary = processor.vocabulary
    assert vocabulary.action_ids == model.config.action_ids == ACTION_IDS
    assert vocabulary.placeholder_id == model.config.image_token_id == IMAGE
    assert vocabulary.image_ids == (IMAGE,)
    assert [vocabulary.mark_ids[mark] for mark in MARKS] == list(range(IMAGE + 1, IMAGE + 1 + len(MARKS)))
    slots, num_slots = IMAGE + 1 + len(MARKS), processor.decoding.num_actions if decoding == "parallel" else 0
    assert vocabulary.slot_ids == tuple(range(slots, slots + num_slots))
    assert processor.settings.trained_suites == ("new",)
    before = load_checkpoint(openvla).state_dict()
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            rows = slice(IMAGE + 1, slots)
            assert (tensor[rows] != before[name][rows]).any(1).all()  # not what publishing left there
            assert tensor[rows].std() == pytest.approx(float(before[name][:IMAGE].std()), rel=0.1)
            tensor[rows] = before[name][rows]
        if name.endswith("embed_tokens.weight") and decoding == "parallel":
            rows = slice(slots, slots + num_slots)
            assert not tensor[rows].any()  # all that OpenVLA-OFT reads in the place of an action
            tensor[rows] = before[name][rows]
        assert torch.equal(tensor, before[name]), name  # rows were left for every new token


@pytest.mark.parametrize(("norm_stats", "key"), [(published.NORM_STATS, ""), (SEVERAL, "mine")])
def test_the_only_or_the_named_statistics_are_the_codec_and_the_others_are_forgotten(
    openvla: Path, demos: DemonstrationSet, tmp_path: Path, norm_stats: dict[str, Any], key: str
) -> None:
    folder = with_statistics(openvla, tmp_path / "folder", norm_stats)
    cfg = config(folder, demos, statistics_key=key, learner=LearnerConfig(dtype="bfloat16"))
    model, processor = start_policy(cfg, demos)
    name = key or KEY
    assert processor.codec == BinCodec.from_norm_stats(norm_stats, name, chunk_length=2, gripper_dim=-1)
    assert type(processor.codec) is BinCodec
    assert model.config.norm_stats == {name: norm_stats[name]}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_statistics_of_the_demonstrations_are_those_that_openvla_oft_would_write(
    openvla: Path, demos: DemonstrationSet
) -> None:
    model, processor = start_policy(config(openvla, demos, statistics_key="demonstrations"), demos)
    actions = demos.actions().reshape(-1, 3).astype(np.float64)
    low, high = np.quantile(actions, (0.01, 0.99), axis=0)
    assert processor.codec.low == (*low[:2], -1.0)  # the gripper is not normalised
    assert processor.codec.high == (*high[:2], 1.0)
    (stats,) = model.config.norm_stats.values()
    assert model.config.norm_stats.keys() == {"demos"}
    assert stats["action"]["mask"] == [True, True, False]
    assert (stats["action"]["min"][2], stats["action"]["max"][2]) == (0.0, 1.0)  # OpenVLA's gripper
    np.testing.assert_allclose(
        [stats["action"][n][0] for n in ("mean", "std")], [actions[:, 0].mean(), actions[:, 0].std()]
    )
    assert processor.codec == BinCodec.from_norm_stats(model.config.norm_stats, chunk_length=2, gripper_dim=-1)
    least = start_policy(config(openvla, demos, statistics_key="demonstrations", statistics_kind="bounds"), demos)[1]
    assert least.codec.low == (*actions.min(0)[:2], -1.0)


@pytest.mark.parametrize("key", ["demonstrations", ""])
def test_a_gripper_from_0_to_1_has_no_place_among_openvla_s_action_tokens(
    openvla: Path, tmp_path: Path, key: str
) -> None:
    rng = np.random.default_rng(0)
    chunks = [np.append(rng.uniform(-0.3, 0.2, (2, 2)), [[0.4], [1.0]], axis=1) for _ in range(4)]
    write_dataset(tmp_path / "demos", [[demonstration(chunk)] for chunk in chunks], robot="test", fps=1.0)
    demos = dataset.read(tmp_path / "demos")
    message = (
        r"gripper_dim is -1, which goes from 0\.4 to 1 in .*demos, .*read\.gripper openvla or droid, or set gripper"
    )
    with pytest.raises(ValueError, match=message):
        start_policy(config(openvla, demos, statistics_key=key), demos)
    cfg = replace(config(openvla, demos, statistics_key="demonstrations"), gripper_dim=None)
    assert start_policy(cfg, demos)[1].codec.gripper_dim is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"statistics_key is '' for .*name one of the checkpoint's data sets: a, b; or set .* demonstrations, for"),
        ({"statistics_key": "c"}, r"statistics_key is 'c' .* no statistics of 'c'; it has those of a, b; or set"),
        ({"statistics_key": "a", "statistics_kind": "bounds"}, r"statistics of 'a' lack min, max of the actions; or"),
        ({"statistics_key": "a"}, r"of 2 action dimensions, those of .*demos have 3; set statistics_key dem"),
        ({"num_bins": 64}, r"num_bins is 64, .*several has 256 action tokens: set num_bins 256"),
    ],
)
def test_keys_that_contradict_the_checkpoint_are_named(
    openvla: Path, demos: DemonstrationSet, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    bounds = {"action": {"q01": [-1.0, -1.0], "q99": [1.0, 1.0]}}
    several = with_statistics(openvla, tmp_path / "several", {"a": bounds, "b": bounds})
    with pytest.raises(ValueError, match=message):
        start_policy(config(several, demos, **changes), demos)


@pytest.mark.parametrize("changes", [{"statistics_key": "mine"}, {"statistics_kind": "bounds"}])
def test_other_models_have_no_statistics(demos: DemonstrationSet, tiny_policy: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"only an OpenVLA checkpoint has action statistics, model is '/.*leave both"):
        start_policy(config(tiny_policy, demos, **changes), demos)


def test_a_codec_of_another_number_of_bins_is_refused(openvla: Path, demos: DemonstrationSet) -> None:
    processor = start_policy(config(openvla, demos), demos)[1]
    with pytest.raises(ValueError, match="the model has 8 action tokens of its own, its codec 256 bins"):
        PolicyProcessor.create(processor.hf_processor, processor.settings, action_ids=range(8))


def logprobs(model: Any, processor: PolicyProcessor, demos: DemonstrationSet) -> torch.Tensor:
    """[2, L] of two demonstrations."""
    policy = Thinker(processor)
    inputs = policy.inputs([policy.to_turn(demos[i]) for i in range(2)], "cpu", torch.float32)
    with torch.no_grad():
        return policy.logprobs(model, inputs)[0]


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_what_was_saved_is_read_again(openvla: Path, demos: DemonstrationSet, tmp_path: Path, decoding: Any) -> None:
    cfg = config(openvla, demos, statistics_key="demonstrations", action_decoding=decoding)
    model, processor = start_policy(cfg, demos)
    save_policy(model, processor, tmp_path / "policy")
    again, loaded = load_model(tmp_path / "policy"), PolicyProcessor.load(tmp_path / "policy")
    assert (loaded.codec, type(loaded.codec)) == (processor.codec, BinCodec)
    assert loaded.settings.action_decoding == decoding
    for name in ("mark_ids", "action_ids", "image_ids", "placeholder_id", "slot_ids"):
        assert getattr(loaded.vocabulary, name) == getattr(processor.vocabulary, name), name
    assert again.config.norm_stats == model.config.norm_stats
    statistics = json.loads((tmp_path / "policy/dataset_statistics.json").read_text())
    assert statistics == model.config.norm_stats  # where published code looks for them
    assert torch.equal(logprobs(again, loaded, demos), logprobs(model, processor, demos))
    # Trained further, it keeps its statistics without being told, and the rows of its marks.
    further, kept = start_policy(config(tmp_path / "policy", demos), demos)
    assert kept.codec == processor.codec
    assert torch.equal(logprobs(further, kept, demos), logprobs(model, processor, demos))


@pytest.fixture(params=["first", "always"])
def processor(request: pytest.FixtureRequest, openvla: Path, demos: DemonstrationSet) -> PolicyProcessor:
    """With both ways in which Llama's tokenizers have put a space before a text: once, or behind every mark."""
    processor = start_policy(config(openvla, demos, action_decoding="parallel"), demos)[1]
    if request.param == "always":
        backend = processor.hf_processor.tokenizer.backend_tokenizer
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return processor


def words(processor: PolicyProcessor, ids: Sequence[int]) -> list[str]:
    return processor.hf_processor.tokenizer.convert_ids_to_tokens(list(ids))


@pytest.mark.parametrize("num_images", [1, 2])
def test_the_prompt_is_the_published_one_with_images_behind_its_first_token(
    processor: PolicyProcessor, num_images: int
) -> None:
    alone = processor.hf_processor.tokenizer(PROMPT)["input_ids"]  # as `predict_action` encodes it, without the image
    assert words(processor, alone)[:2] == ["<s>", "▁In:"]
    assert words(processor, alone)[-1] == "▁"  # 29871, which `predict_action` appends
    ids = processor.prompt_ids("Press the red pad", num_images)
    assert ids == (1, *[IMAGE] * num_images, *alone[1:])


def test_marks_are_one_token_wherever_they_stand_and_text_is_read_as_meant(
    processor: PolicyProcessor,
) -> None:
    vocabulary = processor.vocabulary
    slots = dict(zip(slot_tokens(processor.decoding.num_actions), vocabulary.slot_ids, strict=True))
    for token, id_ in {**vocabulary.mark_ids, **slots, "<image>": IMAGE}.items():
        assert vocabulary.encode(token) == [id_]
        assert vocabulary.encode(f"a {token} b{token}").count(id_) == 2
    ids = processor.result_ids(image=True)
    assert words(processor, ids) == ["<result>", "<image>", "</result>"]
    frame = np.zeros((64, 64, 3), np.uint8)
    expanded = processor.expand(ids, [frame]).tolist()
    assert words(processor, expanded) == ["<result>", *["<image>"] * published.NUM_PATCHES, "</result>"]
    text = vocabulary.decode(vocabulary.encode(TEXTS[0]))
    (think, said), (tool, call) = parse_text(text)
    assert (think.kind, said.strip()) == (SegmentKind.THINK, "look 100 200")
    assert tool.kind is SegmentKind.TOOL_CALL
    assert parse_call(call) == ToolCall(name="zoom_in", arguments={"image": 0, "bbox": [0, 5, 100, 200]})


def test_a_hub_id_is_found_in_the_cache(openvla: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "models--openvla--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0" * 40)
    shutil.copytree(openvla, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    expected = load_checkpoint(openvla).state_dict()
    loaded = auto.load_model("openvla/tiny", torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert auto.load_processor("openvla/tiny").image_seq_len == published.NUM_PATCHES


def test_slots_of_a_long_chunk_make_the_vocabulary_grow_and_leave_the_actions_where_they_are(
    openvla: Path, tmp_path: Path
) -> None:
    model, hf_processor = auto.load_model(openvla, torch.float32), auto.load_processor(openvla)
    rows = model.get_input_embeddings().num_embeddings
    extend_vocabulary(model, hf_processor, num_bins=0)
    assert model.get_input_embeddings().num_embeddings == rows
    before = model.state_dict()
    add_slots(model, hf_processor, 64)  # publishing left 64 rows, of which two and the marks are taken
    assert model.get_input_embeddings().num_embeddings == len(hf_processor.tokenizer) == rows + 2 + len(MARKS)
    for name, weight in model.state_dict().items():
        known = IMAGE + 1 + len(MARKS) if "embed_tokens" in name or "lm_head" in name else None
        assert torch.equal(weight[:known], before[name][:known]), name
    auto.save_model(model, tmp_path, model.state_dict())
    saved = json.loads((tmp_path / "config.json").read_text())
    # Where published code looks for symbol 0: `vocab_size - pad_to_multiple_of - 1`, 31999 of the published ones.
    assert saved["text_config"]["vocab_size"] - saved["pad_to_multiple_of"] - 1 == ACTION_IDS[0]
    again = auto.load_model(tmp_path, torch.float32)
    assert again.config.action_ids == model.config.action_ids == ACTION_IDS
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)
