"""Pixels and prompts of OpenVLA: the published arithmetic, images among words, and the place among other processors."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from rlvla.policies.models.openvla import register
from rlvla.policies.models.openvla.checkpoint import CheckpointError, load_processor
from rlvla.policies.models.openvla.processor import PrismaticImageProcessor, PrismaticProcessor
from tests import openvla_checkpoints as published

IMAGE = published.NUM_WORDS + 1
PATCHES = [IMAGE] * published.NUM_PATCHES


def image(seed: int, height: int = 40, width: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def processor(openvla):
    return load_processor(openvla)


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


def test_nested_images_are_padded_with_zeros_and_counted(processor):
    batch = processor.image_processor([[image(0)], [], [image(1), image(2)]], return_tensors="pt")
    flat = processor.image_processor([image(i) for i in range(3)], return_tensors="pt")["pixel_values"]
    assert batch["num_images"].tolist() == [1, 0, 2]
    assert torch.equal(batch["pixel_values"][[0, 2, 2], [0, 0, 1]], flat)
    assert batch["pixel_values"][[0, 1, 1], [1, 0, 1]].abs().max() == 0


def test_placeholders_become_patches_where_they_are(processor):
    batch = processor(text=["<image>one", "two<image><image>"], images=[image(0), image(1), image(2)])
    one, two = (processor.tokenizer.encode(text, add_special_tokens=False) for text in ("one", "two"))
    words = [[id_ for id_ in ids if id_ != IMAGE] for ids in batch["input_ids"]]
    assert batch["input_ids"] == [[1, *PATCHES, *words[0][1:]], [1, *two, *PATCHES, *PATCHES]]
    assert processor.tokenizer.decode(words[0][1:]) == processor.tokenizer.decode(one)
    assert batch["num_images"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="1 image placeholders for 2 images"):
        processor(text=["<image>one"], images=[image(0), image(1)])


@pytest.mark.slow
def test_neither_timm_nor_torchvision_is_needed(openvla):
    code = f"""
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def hide(name, *rest):
    return None if name.split(".")[0] in ("timm", "torchvision") else find(name, *rest)
importlib.machinery.PathFinder.find_spec = staticmethod(hide)
from rlvla.policies.models.openvla.checkpoint import load_checkpoint, load_processor
from PIL import Image
batch = load_processor({str(openvla)!r})(text=["<image>"], images=[Image.new("RGB", (9, 9))], return_tensors="pt")
print(load_checkpoint({str(openvla)!r})(**batch).logits.shape[1], {{"timm", "torchvision"}} & sys.modules.keys())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.split() == ["5", "set()"]


@pytest.mark.parametrize(("key", "value"), [("image_resize_strategy", "letterbox"), ("interpolations", ["bilinear"])])
def test_what_is_not_supported_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=re.escape(repr(value))):
        PrismaticImageProcessor(**{key: value})


def test_auto_processor_reads_published_folders_and_ours(openvla, processor, tmp_path):
    register()
    from_published = AutoProcessor.from_pretrained(openvla)
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
    tokenizer = published.llama_tokenizer([])
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"id 642, .* image_token_index 641"):
        load_processor(tmp_path)
