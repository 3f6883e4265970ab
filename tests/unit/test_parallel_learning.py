"""The learner of a policy that decodes its actions in parallel: one forward for thought and action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import LoraConfig, LossConfig
from rlvla.learner.learner import Learner
from rlvla.policies.thinker.hybrid_mask import HybridAttentionError
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import load_model
from rlvla.types import Group
from tests import learning
from tests import parallel_policies as tiny
from tests.trajectories import TASK, make_trajectory

LOSS = LossConfig(kl_coef=0.1, average="token", importance_cap=0.0)


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def checkpoint(request, tmp_path_factory) -> Path:
    """Also with prompts whose tokens see each other."""
    return tiny.save("idefics3", tmp_path_factory.mktemp("parallel"), prefix_attention=request.param)


def make_learner(checkpoint: Path, loss: LossConfig = LOSS, **options: Any) -> Learner:
    return learning.make_learner(
        checkpoint, loss, **{"micro_batch_rows": 2, "minibatch_trajectories": 8, **tiny.TEMPERATURES, **options}
    )


def make_group(processor: PolicyProcessor) -> Group:
    """Three trajectories of one or two turns of various lengths, one with an injected `<act>`."""
    turns = [tiny.turn(processor, num_zooms=i % 3, seed=i, is_open=i == 3) for i in range(5)]
    members = [(turns[:2], 1.0), (turns[2:4], -1.0), (turns[4:], 0.5)]
    return Group(task=TASK, trajectories=tuple(make_trajectory(t, advantage=a) for t, a in members))


def test_a_step_is_that_of_the_oracle(checkpoint):
    processor, model = PolicyProcessor.load(checkpoint), load_model(checkpoint).eval()
    group = make_group(processor)
    num_tokens = sum(turn.num_sampled_tokens for t in group.trajectories for turn in t.turns)
    objective = torch.zeros(())
    for trajectory in group.trajectories:
        for turn in trajectory.turns:
            logprobs = tiny.oracle(model, processor, turn)[0, torch.from_numpy(turn.loss_mask)]
            objective = objective - trajectory.advantage * (logprobs - logprobs.detach()).exp().sum() / num_tokens
    objective.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    learner = make_learner(checkpoint)
    metrics = learner.step([group])
    learner.close()
    assert metrics["loss"] == pytest.approx(objective.item(), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert metrics["kl"] == metrics["kl/act"] == 0


@pytest.mark.parametrize(
    "options", [{"micro_batch_rows": 8}, {"gradient_checkpointing": True}, {"zero_stage": 3}], ids=str
)
def test_how_the_step_is_computed_does_not_matter(checkpoint, options):
    group = make_group(PolicyProcessor.load(checkpoint))
    results = []
    for chosen in ({}, options):
        learner = make_learner(checkpoint, minibatch_trajectories=2, num_epochs=2, **chosen)
        metrics = learner.step([group])
        results.append((metrics, learning.weights_of(learner)))
        learner.close()
    (usual, weights), (metrics, others) = results
    assert usual["kl"] > 0
    assert metrics["loss"] == pytest.approx(usual["loss"], rel=1e-4, abs=1e-6)
    for name, weight in weights.items():
        np.testing.assert_allclose(others[name], weight, rtol=0, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all", "lora"])
def test_slots_are_learned_with_all_weights_and_with_lora(checkpoint, lora):
    processor = PolicyProcessor.load(checkpoint)
    learner = make_learner(checkpoint, lora=lora, mode="think")
    assert learner.step([make_group(processor)])["kl"] == 0  # the reference decodes as the policy does, and bans as it
    (name,) = (name for name in learning.weights_of(learner) if name.endswith("embed_tokens.weight"))
    after = learning.weights_of(learner)[name][list(processor.vocabulary.slot_ids)]
    learner.close()
    before = load_model(checkpoint).get_input_embeddings().weight[list(processor.vocabulary.slot_ids)]
    moved = np.abs(after - before.detach().numpy()).max(1)
    # The last slot scores nothing, and the only one before `</act>`, which is injected.
    assert (moved[:-1] > 1e-4).all()


def test_a_learner_whose_mask_is_ignored_does_not_start(checkpoint, monkeypatch):
    load = Thinker.load_to_train

    def load_deaf(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        forward = model.forward
        model.forward = lambda attention_mask=None, **inputs: forward(**inputs)
        return model

    monkeypatch.setattr(Thinker, "load_to_train", load_deaf)
    with pytest.raises(HybridAttentionError, match="not bidirectional"):
        make_learner(checkpoint)
