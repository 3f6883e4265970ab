"""A cold start's loss and gradient, padded in a batch, against those of a row at a time with a mask by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlvla.config import SFTConfig
from rlvla.learner.collate import to_row
from rlvla.learner.sft import SFTTrainer
from rlvla.policies.markup import print_think
from rlvla.policies.thinker.policy import Thinker
from tests import parallel_policies as tiny

THOUGHTS = [
    print_think(text) for text in ("the pad at 200, 350 is red", "it is red", "press it", "it is red. press it")
]


@pytest.mark.parametrize("architecture", ["idefics3", "qwen2_5_vl", "openvla"])
def test_loss_and_gradient_are_those_of_a_row_at_a_time(tmp_path, architecture):
    model, processor = tiny.build(architecture, tmp_path)
    reference = copy.deepcopy(model)
    turns = [tiny.turn(processor, num_zooms=i % 2, seed=i, thought=thought) for i, thought in enumerate(THOUGHTS)]
    expected = torch.zeros(())
    for turn in turns:
        logprobs, _ = tiny.oracle(reference, processor, turn, is_hot=False)
        expected = expected - logprobs[torch.from_numpy(turn.loss_mask)].sum()
    expected.backward()
    # All that a trainer's loss asks of it; DeepSpeed would let nobody else call backward.
    trainer: Any = SimpleNamespace(_policy=Thinker(processor), _model=model, _device="cpu", _cfg=SFTConfig())
    micro_batch = SFTTrainer._inputs(trainer, [to_row(turn) for turn in turns])
    loss = SFTTrainer._token_losses(trainer, micro_batch).sum()
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
