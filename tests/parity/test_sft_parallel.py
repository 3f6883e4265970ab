"""A cold start's loss and gradient, padded in a batch, against those of a row at a time with a mask by hand."""

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
from rlvla.policies.thinker.demonstrating import to_turn
from rlvla.policies.thinker.policy import Thinker
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


@pytest.mark.parametrize("architecture", ["idefics3", "qwen2_5_vl", "openvla"])
def test_loss_and_gradient_are_those_of_a_row_at_a_time(tmp_path, architecture):
    model, processor = tiny.build(architecture, tmp_path)
    reference = copy.deepcopy(model)
    turns = [to_turn(processor, demonstration(i)) for i in range(4)]
    expected = torch.zeros(())
    for turn in turns:
        logprobs, _ = tiny.oracle(reference, processor, turn, is_hot=False)
        expected = expected - logprobs[torch.from_numpy(turn.loss_mask)].sum()
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
