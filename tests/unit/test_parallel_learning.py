"""Cold start and learner of a policy that decodes its actions in parallel: one forward for thought and action."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import LearnerConfig, LoraConfig, LossConfig, SFTConfig, TinyModelConfig
from rlvla.data.dataset import read, write
from rlvla.data.types import Demonstration
from rlvla.learner.learner import Learner
from rlvla.learner.sft import SFTTrainer
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.thinker.cold_start import start_policy
from rlvla.policies.thinker.hybrid_mask import HybridAttentionError
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.turn_context import Recall, executed
from rlvla.policies.weights import load_model
from rlvla.samplers.local import TransformersSampler
from rlvla.testing import TASK, make_trajectory
from rlvla.types import EndReason, Group, SegmentKind
from tests import learning
from tests import parallel_policies as tiny
from tests.deciding import decided
from tests.learning import first_of_its_process

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


def test_what_was_not_executed_moves_nothing(checkpoint):
    """Other actions behind the end of an episode, and the step is the same to the last bit."""
    processor = PolicyProcessor.load(checkpoint)
    steps = []
    for last_bin in (0, 3):
        turn = tiny.turn(processor, num_zooms=1, seed=0)
        turn = executed(turn, turn.actions[:1], processor)
        start, end = turn.of_kind(SegmentKind.ACT)[0].unexecuted
        token_ids = turn.token_ids.copy()
        token_ids[start:end] = processor.vocabulary.action_ids[last_bin]
        turn = replace(turn, token_ids=token_ids)
        learner = make_learner(checkpoint)
        metrics = learner.step([Group(task=TASK, trajectories=(make_trajectory([turn], advantage=1.0),))])
        learner.close()
        assert metrics["num_tokens"] == turn.num_sampled_tokens - (end - start)
        steps.append([metrics[name] for name in ("loss", "grad_norm", "mismatch_kl", "entropy", "ratio_max")])
    assert end - start == tiny.NUM_ACTIONS - processor.codec.chunk_shape[1]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    "options", [{"micro_batch_rows": 8}, {"zero_stage": 3}, {"gradient_checkpointing": True}], ids=str
)
def test_how_the_step_is_computed_does_not_matter(checkpoint, options):
    group = make_group(PolicyProcessor.load(checkpoint))
    results = []
    for chosen in ({}, options):
        learner = make_learner(checkpoint, minibatch_trajectories=2, num_epochs=2, **chosen)
        metrics = learner.step([group])
        results.append((metrics, learner.weights()))
        learner.close()
    (usual, weights), (metrics, others) = results
    assert usual["kl"] > 0
    assert metrics["loss"] == pytest.approx(usual["loss"], rel=1e-4, abs=1e-6)
    for name, weight in weights.items():
        np.testing.assert_allclose(others[name], weight, rtol=0, atol=5e-5, err_msg=name)


def test_with_lora_the_reference_decodes_in_parallel_too(checkpoint):
    learner = make_learner(checkpoint, lora=LoraConfig(rank=2))
    group = make_group(PolicyProcessor.load(checkpoint))
    assert learner.step([group])["kl"] == 0
    assert 0 < learner.step([group])["kl/act"] < 1
    learner.close()


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all", "lora"])
def test_slots_are_learned_with_all_weights_and_with_lora(checkpoint, lora):
    processor = PolicyProcessor.load(checkpoint)
    learner = make_learner(checkpoint, lora=lora)
    learner.step([make_group(processor)])
    (name,) = (name for name in learner.weights() if name.endswith("embed_tokens.weight"))
    after = learner.weights()[name][list(processor.vocabulary.slot_ids)]
    learner.close()
    before = load_model(checkpoint).get_input_embeddings().weight[list(processor.vocabulary.slot_ids)]
    moved = np.abs(after - before.detach().numpy()).max(1)
    assert (
        moved[:-1] > 1e-4
    ).all()  # the last slot scores nothing, and the only one before `</act>`, which is injected


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


def demonstrations() -> list[Demonstration]:
    """Four views, each with a thought, half of them with a zoom, and a chunk of its own."""
    demos = []
    for i in range(4):
        actions = np.random.default_rng(i).uniform(-1, 1, (3, 2)).astype(np.float32)
        last = print_think(f"press {i}00 200")
        texts = (print_think("look 100 200") + print_zoom(0, (0, 5, 100, 200)), last) if i % 2 else (last,)
        demos.append(
            Demonstration(
                instruction="press the red pad",
                images=(np.full((64, 64, 3), 80 * i, np.uint8),),
                proprio=np.zeros(4, np.float32),
                texts=texts,
                crops=(np.full((64, 64, 3), 10 + 60 * i, np.uint8),) * (i % 2),
                actions=actions,
            )
        )
    return demos


@pytest.mark.long
def test_a_cold_start_overfits_and_its_episodes_teach_the_learner(tmp_path, monkeypatch):
    """With all that is bidirectional: prompts and actions."""
    first_of_its_process(monkeypatch)
    demos = demonstrations()
    write(tmp_path / "demos", [[demo] for demo in demos * 2], robot="test", fps=1.0, suites=("new",))
    cfg = SFTConfig(
        dataset=tmp_path / "demos",
        tiny=TinyModelConfig(hidden_size=64, num_layers=2, vision_layers=1),
        num_bins=16,
        gripper_dim=None,
        num_steps=150,
        batch_size=8,
        learner=LearnerConfig(lr=3e-3, warmup_steps=10, schedule="cosine"),
        action_decoding="parallel",
        prefix_attention="bidirectional",
    )
    data = read(cfg.dataset)
    model, processor = start_policy(cfg, data)
    trainer = SFTTrainer(cfg, model, Thinker(processor), data)
    losses = [trainer.step(step)["loss"] for step in range(cfg.num_steps)]
    assert losses[0] > 2
    assert losses[-1] < 0.05
    trainer.save(tmp_path / "policy")
    assert PolicyProcessor.load(tmp_path / "policy").settings.prefix_attention == "bidirectional"

    sampler = TransformersSampler(tmp_path / "policy")
    for demo in demos:
        decision = decided(processor, sampler, demo, temperature=0.0)
        assert [s.text for s in decision.turn.of_kind(SegmentKind.THINK)][-1] in demo.texts[-1]
        np.testing.assert_array_equal(decision.actions, processor.codec.decode(processor.codec.encode(demo.actions)))

    sampled = [decided(processor, sampler, demos[1], seed=seed, **tiny.TEMPERATURES) for seed in range(4)]
    recall = Recall().after(sampled[1].turn, think_every=2)
    sampled.append(decided(processor, sampler, demos[1], seed=4, memory=recall, **tiny.TEMPERATURES))
    assert any(segment.is_reused for segment in sampled[-1].turn.segments)
    trajectories = [
        make_trajectory([decision.turn], end=EndReason.SUCCESS, advantage=(-1.0) ** i)
        for i, decision in enumerate(sampled)
    ]
    learner = make_learner(tmp_path / "policy")
    metrics = learner.step([Group(task=TASK, trajectories=tuple(trajectories))])
    learner.close()
    assert metrics["mismatch_kl"] < 1e-6
    assert metrics["num_rows"] == 5
