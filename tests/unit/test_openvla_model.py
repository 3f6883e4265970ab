"""OpenVLA as a network: published names and sizes, images among words, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlvla.policies.models.openvla.checkpoint import load_checkpoint
from rlvla.policies.models.openvla.config import OpenVLAConfig
from rlvla.policies.models.openvla.model import OpenVLAForConditionalGeneration
from tests import openvla_checkpoints as published

FULL_TEXT = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
FULL_DINOV2 = {**published.DINOV2, "hidden_size": 1024, "intermediate_size": 4096, "num_layers": 24, "image_size": 224}
FULL_SIGLIP = {**published.SIGLIP, "hidden_size": 1152, "intermediate_size": 4304, "num_layers": 27, "image_size": 224}
PATCHES = [published.NUM_WORDS + 1] * published.NUM_PATCHES
ONE = ([1, *PATCHES, 50, 60, 70], 1)
TWO = ([1, *PATCHES, 50, *PATCHES, 80, 90, 100, 110], 2)
NONE = ([1, 50, 60], 0)


@pytest.fixture
def model(openvla):
    return load_checkpoint(openvla)


def pixels(*shape: int) -> torch.Tensor:
    size = (*shape, 6, published.IMAGE_SIZE, published.IMAGE_SIZE)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def batch(rows: list[tuple[list[int], int]], length: int = 0) -> dict[str, torch.Tensor]:
    """(ids, number of images) of each row -> inputs padded on the right; image n of any row shows the n-th picture."""
    length = max(length, *(len(ids) for ids, _ in rows))
    ids = torch.full((len(rows), length), published.NUM_WORDS)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for b, (row, _) in enumerate(rows):
        ids[b, : len(row)], mask[b, : len(row)] = torch.tensor(row), 1
    counts = torch.tensor([count for _, count in rows])
    images = pixels(int(counts.max())).expand(len(rows), -1, -1, -1, -1)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images, "num_images": counts}


def test_the_full_size_is_the_published_one():
    with torch.device("meta"):
        full = OpenVLAForConditionalGeneration(OpenVLAConfig())
    expected = published.published_shapes(FULL_TEXT, [FULL_DINOV2, FULL_SIGLIP], 32064)
    assert {name: list(t.shape) for name, t in full.state_dict().items()} == expected
    assert len(expected) == 685 + 6 + 291  # towers, projector, language model
    assert sum(p.numel() for p in full.parameters()) == 7_541_237_184
    # A LoRA of rank 32 has as many parameters as published training logs say.
    sizes = [m.in_features + m.out_features for m in full.modules() if isinstance(m, nn.Linear)]
    sizes += [m.weight[0].numel() + m.out_channels for m in full.modules() if isinstance(m, nn.Conv2d)]
    assert (len(sizes), 32 * sum(sizes)) == (439, 110_828_288)


@torch.no_grad()
def test_logits_do_not_depend_on_padding_neighbours_or_the_order_of_rows(model):
    rows = [ONE, TWO, NONE]
    together = model(**batch(rows, length=30)).logits
    reverse = model(**batch(rows[::-1])).logits.flip(0)
    for b, (ids, count) in enumerate(rows):
        inputs = batch([(ids, count)]) if count else {"input_ids": torch.tensor([ids])}
        alone = model(**inputs).logits[0]
        torch.testing.assert_close(together[b, : len(ids)], alone, atol=2e-5, rtol=0)
        torch.testing.assert_close(reverse[b, : len(ids)], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("ids", "images", "num_images", "message"),
    [
        ([[1, *PATCHES, 2, *PATCHES]], pixels(1, 1), [1], "row 0 has 8 image placeholders for 1 images of 4"),
        ([[1, *PATCHES, 2], [1, *PATCHES[1:], 2, 3]], pixels(2, 1), [1, 1], "row 1 has 3"),
        ([[1, *PATCHES], [1, 2, 3, 4, 5]], pixels(2, 1), [0, 1], "row 0 has 4 image placeholders for 0 images"),
        ([[1, *PATCHES]], torch.zeros(1, 1, 3, 28, 28), [1], "3 channels, need 6"),
        ([[1, *PATCHES]], torch.zeros(1, 1, 6, 56, 56), [1], "28 squared"),
    ],
)
def test_other_images_than_the_tokens_and_the_towers_need_are_refused(model, ids, images, num_images, message):
    with pytest.raises(ValueError, match=message):
        model(torch.tensor(ids), pixel_values=images, num_images=torch.tensor(num_images))


def test_the_same_gradients_reach_all_that_is_trained_with_and_without_checkpointing(model):
    """What no feature needs is frozen, behind loading too."""
    model.train()
    grads = []
    for _ in range(2):
        model.zero_grad()
        model(**batch([ONE, TWO])).logits.square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    torch.testing.assert_close(grads[1], grads[0])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    without = {name for name, _ in model.named_parameters() if name not in grads[0] or not grads[0][name].any()}
    assert without == frozen
    assert {name.split(".")[2] for name in frozen} == {"blocks", "norm", "attn_pool"}
    towers = {"vision_backbone.featurizer.blocks.2", "vision_backbone.fused_featurizer.blocks.3"}
    assert {name[: name.index(".", name.index("blocks.") + 7)] for name in frozen if "blocks" in name} == towers
