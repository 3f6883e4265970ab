"""Pixels and prompts of OpenVLA: the published arithmetic, images among words, and the place among other processors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from rlvla.policies.markup import MARKS
from rlvla.policies.models.backbones import own_action_ids
from rlvla.policies.models.openvla import register
from rlvla.policies.models.openvla.checkpoint import CheckpointError, load_checkpoint, load_processor
from rlvla.policies.models.openvla.processor import PrismaticImageProcessor, PrismaticProcessor
from rlvla.policies.thinker.actions import BinCodec
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.settings import Settings
from rlvla.policies.thinker.vocabulary import extend_vocabulary
from tests import openvla_checkpoints as published

INSTRUCTION = "Pick up the black bowl"
IMAGE = published.NUM_WORDS + 1
PATCHES = [IMAGE] * published.NUM_PATCHES


def image(seed: int, height: int = 40, width: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("openvla")
    published.write_published(path)
    return path


@pytest.fixture
def processor(path):
    return load_processor(path)


def words(processor, text: str) -> list[int]:
    return processor.tokenizer.encode(text, add_special_tokens=False)


def test_pixels_are_those_of_the_published_transform(processor):
    tvf = pytest.importorskip("torchvision.transforms.functional")
    expected = []
    for params in published.NORMALIZE:
        resized = tvf.resize(
            image(0), [published.IMAGE_SIZE] * 2, interpolation=tvf.InterpolationMode.BICUBIC, antialias=True
        )
        expected.append(tvf.normalize(tvf.to_tensor(resized), params["mean"], params["std"]))
    ours = processor.image_processor([image(0)], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours[0], torch.cat(expected))


def test_a_grey_image_by_hand():
    grey = np.full((5, 9, 3), 51, np.uint8)  # 0.2
    plain = PrismaticImageProcessor(
        input_sizes=[[3, 2, 2]] * 2,
        interpolations=["bicubic"] * 2,
        means=[[0.1, 0.2, 0.3], [0.5] * 3],
        stds=[[0.1] * 3, [0.5] * 3],
    )
    pixels = plain(grey)["pixel_values"][0]
    np.testing.assert_allclose(pixels[:, 0, 0], [1, 0, -1, -0.6, -0.6, -0.6], atol=1e-6)


def test_the_numbers_that_the_published_code_uses_win_over_those_beside_them(processor):
    black = np.zeros((28, 28, 3), np.uint8)
    pixels = processor.image_processor(black)["pixel_values"][0, :, 0, 0]
    assert pixels[0] == np.float32(-0.484375) / np.float32(0.228515625)  # not -0.485 / 0.229


def test_nested_images_are_padded_with_zeros_and_counted(processor):
    batch = processor.image_processor([[image(0)], [], [image(1), image(2)]], return_tensors="pt")
    flat = processor.image_processor([image(i) for i in range(3)], return_tensors="pt")["pixel_values"]
    assert batch["num_images"].tolist() == [1, 0, 2]
    assert torch.equal(batch["pixel_values"][[0, 2, 2], [0, 0, 1]], flat)
    assert batch["pixel_values"][[0, 1, 1], [1, 0, 1]].abs().max() == 0


def test_a_prompt_without_placeholder_is_the_published_one(processor):
    text = "In: What action should the robot take to pick up the bowl?\nOut:"
    batch = processor(text=text, images=image(0), return_tensors="pt")
    assert batch["input_ids"][0].tolist() == [1, *PATCHES, *words(processor, text)]
    assert batch["attention_mask"].all()
    assert batch["pixel_values"].shape == (1, 1, 6, 28, 28)


def test_placeholders_become_patches_where_they_are(processor):
    texts = ["<image>one", "two<image><image>"]
    batch = processor(text=texts, images=[image(0), image(1), image(2)], padding=True, return_tensors="pt")
    expected = [[1, *PATCHES, *words(processor, "one")], [1, *words(processor, "two"), *PATCHES, *PATCHES]]
    for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], expected, strict=True):
        assert ids.tolist() == row + [published.NUM_WORDS] * (len(ids) - len(row))
        assert mask.tolist() == [1] * len(row) + [0] * (len(ids) - len(row))
    assert batch["num_images"].tolist() == [1, 2]


def test_text_alone_needs_no_images(processor):
    assert list(processor(text="two", add_special_tokens=False)) == ["input_ids", "attention_mask"]


@pytest.mark.slow
def test_neither_timm_nor_torchvision_is_needed(path):
    code = f"""
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def hide(name, *rest):
    return None if name.split(".")[0] in ("timm", "torchvision") else find(name, *rest)
importlib.machinery.PathFinder.find_spec = staticmethod(hide)
from rlvla.policies.models.openvla.checkpoint import load_checkpoint, load_processor
from PIL import Image
batch = load_processor({str(path)!r})(text="<image>a", images=Image.new("RGB", (9, 9)), return_tensors="pt")
print(load_checkpoint({str(path)!r})(**batch).logits.shape[1], {{"timm", "torchvision"}} & sys.modules.keys())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.split() == ["6", "set()"]


def test_other_numbers_of_images_are_refused(processor):
    with pytest.raises(ValueError, match="1 image placeholders for 2 images"):
        processor(text="<image>one", images=[image(0), image(1)])


def test_what_is_not_supported_is_refused_by_name():
    with pytest.raises(ValueError, match="letterbox"):
        PrismaticImageProcessor(image_resize_strategy="letterbox")
    with pytest.raises(ValueError, match="bilinear"):
        PrismaticImageProcessor(interpolations=["bilinear"])


def test_auto_processor_reads_published_folders_and_ours(path, processor, tmp_path):
    register()
    from_published = AutoProcessor.from_pretrained(path)
    assert isinstance(from_published, PrismaticProcessor)
    assert from_published.image_seq_len == 256  # published folders do not say
    processor.save_pretrained(tmp_path)
    ours = AutoProcessor.from_pretrained(tmp_path)
    assert ours.image_seq_len == published.NUM_PATCHES
    for other in (from_published, ours):
        expected = processor.image_processor(image(3))["pixel_values"]
        np.testing.assert_array_equal(other.image_processor(image(3))["pixel_values"], expected)
        assert other.image_token_id == IMAGE


def test_a_tokenizer_with_another_placeholder_than_the_model_is_refused(tmp_path):
    published.write_published(tmp_path)
    tokenizer = published.tokenizer()
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"id 642, .* image_token_index 641"):
        load_processor(tmp_path)


@pytest.fixture
def policy_processor(path, processor):
    codec = BinCodec.from_norm_stats(published.NORM_STATS, chunk_length=1, gripper_dim=-1)
    model = load_checkpoint(path)
    extend_vocabulary(model, processor, num_bins=0)
    action_ids = own_action_ids(model.config)
    return PolicyProcessor.create(processor, Settings(codec=codec), action_ids)


def test_marks_are_added_behind_the_published_vocabulary_and_bins_keep_their_ids(path, processor):
    model = load_checkpoint(path)
    before = model.get_input_embeddings().weight.clone()
    extend_vocabulary(model, processor, num_bins=0)  # published action tokens are there already
    assert processor.tokenizer.convert_tokens_to_ids(list(MARKS)) == list(range(642, 650))
    assert model.get_input_embeddings().num_embeddings == published.NUM_ROWS  # rows were left
    marked = model.get_input_embeddings().weight.clone()
    extend_vocabulary(model, processor, num_bins=100)
    after = model.get_input_embeddings().weight
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer) == 750
    # Words stay, marks stay once they are there, and what publishing left in the rows of new tokens goes.
    assert torch.equal(after[:642], before[:642])
    assert torch.equal(after[:650], marked[:650])
    assert torch.equal(marked[650:], before[650:])
    assert (after[642 : published.NUM_ROWS] != before[642:]).any(1).all()
    assert model.config.action_ids == tuple(range(639, 383, -1))


def test_a_policy_processor_prompts_as_openvla_was_trained(policy_processor):
    ids = policy_processor.prompt_ids(INSTRUCTION, 2)
    text = "In: What action should the robot take to pick up the black bowl?\nOut: "
    assert ids == (1, IMAGE, IMAGE, *words(policy_processor.hf_processor, text))


@torch.no_grad()
def test_a_policy_processor_feeds_the_model_images_in_rows(policy_processor, path):
    model = load_checkpoint(path)
    model.resize_token_embeddings(len(policy_processor.hf_processor.tokenizer))
    frames = [np.asarray(image(i)) for i in range(2)]
    compact = policy_processor.prompt_ids(INSTRUCTION, 1) + policy_processor.result_ids(image=True)
    ids = policy_processor.expand(compact, frames)
    assert len(ids) == len(compact) + 2 * (published.NUM_PATCHES - 1)
    rows = torch.from_numpy(np.stack([ids, ids])).long()
    inputs = policy_processor.forward_inputs(rows, torch.ones_like(rows))
    inputs |= policy_processor.pixel_inputs([frames, frames[::-1]])
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() > 0.01  # images in another order are another question
