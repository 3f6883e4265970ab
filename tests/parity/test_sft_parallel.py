"""A cold start's loss and gradient, thoughts and actions in one forward, against a forward for each token of text."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import SFTConfig
from rlvla.data.types import Demonstration
from rlvla.learner.collate import to_row
from rlvla.learner.sft import SFTTrainer
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.models.backbones import placeholder_ids
from rlvla.policies.thinker.demonstrating import to_turn
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import BAN_BIAS
from rlvla.types import Turn
from tests import parallel_policies as tiny


def demonstration(seed: int) -> Demonstration:
    """Of two lengths, every other one with a zoom."""
    looks = (print_think("it is red") + print_zoom(0, (0, 5, 100, 200)),) * (seed % 2)
    return Demonstration(
        instruction=tiny.INSTRUCTION,
        images=(tiny.image(seed),),
        proprio=np.zeros(1, np.float32),
        texts=(*looks, print_think("the pad at 200, 350 is red" if seed < 2 else "press it")),
        crops=(tiny.image(10 + seed),) * len(looks),
        actions=np.random.default_rng(seed).uniform(-1, 2, (tiny.CHUNK_LENGTH, 2)).astype(np.float32),
    )


def say(model: Any, processor: PolicyProcessor, turn: Turn, ids: list[int], sees: torch.Tensor | None) -> torch.Tensor:
    """Logits [len(ids), vocabulary] of a forward of these tokens alone, with the images that stand among them."""
    placeholder = processor.vocabulary.placeholder_id
    num_images = ids.count(placeholder) * len(turn.images) // turn.token_ids.tolist().count(placeholder)
    row = torch.tensor([ids])
    inputs: dict[str, Any] = {"input_ids": row, **processor.pixel_inputs([turn.images[:num_images]])}
    if processor.backbone.is_flat:  # Qwen-VL derives positions from a mask of two axes
        inputs["mm_token_type_ids"] = (row == placeholder).int()
        grid = {"image_grid_thw": inputs["image_grid_thw"], "attention_mask": torch.ones_like(row)}
        inputs["position_ids"], _ = model.model.get_rope_index(row, inputs["mm_token_type_ids"], **grid)
    inputs["attention_mask"] = torch.ones_like(row) if sees is None else sees[None, None]
    return model(**inputs, use_cache=False).logits[0]


def by_hand(model: Any, processor: PolicyProcessor, turn: Turn) -> torch.Tensor:
    """Cross entropy of all that a policy would have sampled: text token by token, then the chunk behind its `<act>`."""
    ids, vocabulary = turn.token_ids.tolist(), processor.vocabulary
    act, close = tiny.places(turn)
    loss = torch.zeros(())
    for t in np.flatnonzero(turn.loss_mask[: act + 1]):
        logits = say(model, processor, turn, ids[:t], sees=None)[-1].clone()
        logits[[*placeholder_ids(model.config), *vocabulary.slot_ids]] += BAN_BIAS
        loss = loss - logits.log_softmax(-1)[ids[t]]
    sees = torch.ones(close, close, dtype=torch.bool).tril()
    sees[act:, act:] = True
    logits = say(model, processor, turn, [*ids[: act + 1], *vocabulary.slot_ids], sees)[act:-1]
    bins = torch.tensor(vocabulary.bins(ids[act + 1 : close]))
    return loss + torch.nn.functional.cross_entropy(logits[:, list(vocabulary.action_ids)], bins, reduction="sum")


@pytest.mark.parametrize("architecture", ["idefics3", "qwen2_5_vl", "openvla"])
def test_loss_and_gradient_are_those_of_a_forward_for_each_token(tmp_path, architecture):
    model, processor = tiny.build(architecture, tmp_path)
    reference = copy.deepcopy(model)
    turns = [to_turn(processor, demonstration(i)) for i in range(4)]
    expected = torch.stack([by_hand(reference, processor, turn) for turn in turns]).sum()
    expected.backward()
    # All that a trainer's loss asks of it; DeepSpeed would let nobody else call backward.
    trainer: Any = SimpleNamespace(_policy=Thinker(processor), _model=model, _device="cpu", _cfg=SFTConfig())
    loss = SFTTrainer._token_losses(trainer, [to_row(turn) for turn in turns]).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = (
        {name: p.grad for name, p in m.named_parameters() if p.grad is not None} for m in (model, reference)
    )
    assert ours.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6 * largest, msg=name)
    embeddings = next(gradient for name, gradient in ours.items() if name.endswith("embed_tokens.weight"))
    assert (embeddings[list(processor.vocabulary.slot_ids)].abs().amax(1) > 1e-4).all()  # each slot is read, and learns
