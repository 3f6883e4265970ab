"""One learner process: what a step does, what must not change it, and how it is kept."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from rlvla.config import LearnerConfig, LoraConfig, LossConfig
from rlvla.learner import collate
from rlvla.learner.learner import METRICS, learning_rate
from rlvla.policies.family import FAMILIES
from rlvla.policies.models.backbones import placeholder_ids
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.scoring import token_logprobs
from rlvla.policies.weights import load_model, named_weights
from rlvla.protocols import BAN_BIAS
from rlvla.types import EndReason, Group
from tests.learning import (
    LOSS,
    assert_same_weights,
    learn,
    make_groups,
    make_learner,
    poison,
    save_state,
    weights_of,
)

LORA = LoraConfig(rank=4)


@pytest.fixture(scope="module")
def usual_of(policies):
    """What a family learns."""
    return functools.cache(lambda family: learn(policies[family]))


@pytest.fixture
def learner(checkpoint):
    learner = make_learner(checkpoint)
    yield learner
    learner.close()


def plain_step(
    checkpoint, groups, loss: LossConfig, temperature: float
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """A first step without DeepSpeed, padding or batches, by the formula: (objective, gradient norm, weights)."""
    model, processor = load_model(checkpoint).eval(), PolicyProcessor.load(checkpoint)
    live = [t for group in groups for t in group.trajectories if t.end is not EndReason.ENV_ERROR]
    objective = 0.0
    for trajectory in live:
        share = 1 / (len(live) * sum(turn.num_sampled_tokens for turn in trajectory.turns))
        for turn in trajectory.turns:
            ids = torch.from_numpy(turn.token_ids).long()[None]
            inputs = processor.forward_inputs(ids, torch.ones_like(ids)) | processor.pixel_inputs([turn.images])
            logits = model(**inputs).logits[0, :-1]
            logits[:, list(placeholder_ids(model.config))] += BAN_BIAS
            logprobs = (logits / temperature).log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            weight = (logprobs.detach() - torch.from_numpy(turn.sampler_logprobs)[1:]).exp()
            ratio = (logprobs - logprobs.detach()).exp()
            cost = -weight.clamp(max=loss.importance_cap) * ratio * trajectory.advantage
            objective = objective + share * cost[torch.from_numpy(turn.loss_mask)[1:]].sum()
    objective.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0).step()
    return objective.item(), norm.item(), dict(named_weights(model))


def test_a_step_is_what_plain_torch_does(checkpoint):
    groups = make_groups(checkpoint)
    objective, norm, expected = plain_step(checkpoint, groups, LOSS, temperature=1.3)
    learner = make_learner(checkpoint, temperature=1.3)
    metrics, weights = learner.step(groups), weights_of(learner)
    learner.close()
    assert metrics["loss"] == pytest.approx(objective, abs=1e-6)  # the KL to the reference is 0 still
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    # Adam's first step is lr = 1e-3 times the gradient's sign: rounding shows where a gradient is almost 0.
    assert_same_weights(weights, {name: weight.numpy() for name, weight in expected.items()}, atol=1e-4)


def test_the_first_update_is_on_policy_and_at_the_reference(checkpoint, learner):
    metrics = learner.step(make_groups(checkpoint))
    assert metrics["kl"] == metrics["kl/think"] == metrics["kl/act"] == 0
    assert metrics["ratio_max"] == 1
    assert metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == 0
    assert metrics["num_rows"] == 12
    assert {name for name in metrics if not name.startswith("kl/")} <= METRICS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_later_steps_leave_the_reference(usual_of, family):
    metrics, _ = usual_of(family)
    assert 0 < metrics["kl"] < 1
    assert metrics["ratio_max"] > 1  # the second minibatch sees a policy that the first one changed
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *itertools.product(FAMILIES, ({"micro_batch_rows": 1}, {"micro_batch_rows": 64}, {"zero_stage": 2})),
        ("thinker", {"gradient_checkpointing": True}),
        ("thinker", {"zero_stage": 3}),
    ],
    ids=str,
)
def test_how_the_step_is_computed_does_not_matter(policies, usual_of, family, options):
    metrics, weights = learn(policies[family], **options)
    usual, expected = usual_of(family)
    assert_same_weights(weights, expected)
    for name in ("loss", "kl", "grad_norm", "entropy", "mismatch_kl"):
        assert metrics[name] == pytest.approx(usual[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *itertools.product(FAMILIES, ({}, {"dtype": "bfloat16", "zero_stage": 3})),
        ("thinker", {"zero_stage": 3}),
        ("thinker", {"dtype": "bfloat16"}),
        ("thinker", {"lora": LORA}),
        ("thinker", {"lora": LORA, "zero_stage": 2}),
        ("thinker", {"lora": LORA, "dtype": "bfloat16"}),
    ],
    ids=str,
)
def test_a_resumed_learner_goes_on_bit_for_bit(policies, family, tmp_path, options):
    checkpoint = policies[family]
    groups = make_groups(checkpoint)
    options = {**options, "schedule": "linear", "minibatch_trajectories": 4, "num_epochs": 2}
    first = make_learner(checkpoint, **options)
    first.step(groups)
    save_state(first, tmp_path)
    metrics, weights = first.step(groups), weights_of(first)
    first.close()
    second = make_learner(checkpoint, **options)
    second.load_state(tmp_path)
    again, weights_again = second.step(groups), weights_of(second)
    second.close()
    kept = [{name: value for name, value in step.items() if not name.endswith("_s")} for step in (again, metrics)]
    assert kept[0] == kept[1]
    for name, weight in weights.items():
        np.testing.assert_array_equal(weights_again[name], weight, err_msg=name)


def test_each_epoch_deals_the_trajectories_anew(checkpoint):
    """Two epochs of two minibatches: what stood together in the first does not in the second."""
    learner = make_learner(checkpoint, minibatch_trajectories=3, num_epochs=2)
    dealt = learner._minibatches(collate.rows(make_groups(checkpoint), mask_context_full=True))
    learner.close()
    lengths = [sum(len(turn.token_ids) for batch in batches for turn in batch.turns) for batches in dealt]
    assert len(dealt) == 4
    assert sum(lengths[:2]) == sum(lengths[2:])
    assert {*lengths[:2]} != {*lengths[2:]}


def test_a_state_of_other_trained_weights_is_refused(checkpoint, tmp_path):
    """Such as one of LoRA from before rows of the markup were trained."""
    learner = make_learner(checkpoint, lora=LORA)
    save_state(learner, tmp_path)
    learner.close()
    other = make_learner(checkpoint, lora=LoraConfig(rank=4, target_modules=("q_proj",)))
    with pytest.raises(ValueError, match=r"rank_0\.pt was saved by a run that trains other weights, such as .*lora_"):
        other.load_state(tmp_path)
    other.close()


def test_with_lora_the_reference_is_the_policy_that_it_starts_as(checkpoint):
    groups, start = make_groups(checkpoint), make_learner(checkpoint)
    initial = weights_of(start)
    start.close()
    learner = make_learner(checkpoint, lora=LORA)
    assert_same_weights(weights_of(learner), initial, atol=0)
    assert learner.step(groups)["kl"] == 0
    assert learner.step(groups)["kl"] > 0
    changed = {n for n, weight in weights_of(learner).items() if not np.array_equal(weight, initial[n])}
    learner.close()
    assert changed
    assert all(name.endswith(("_proj.weight", "embed_tokens.weight")) and "vision" not in name for name in changed)


def test_without_kl_no_reference_is_kept(checkpoint):
    metrics, _ = learn(checkpoint, loss=LossConfig(kl_coef=0.0))
    assert not [name for name in metrics if name.startswith("kl")]


def test_a_saved_policy_has_the_learners_weights(checkpoint, learner, tmp_path):
    learner.step(make_groups(checkpoint))
    learner.save(tmp_path)
    saved = {name: weight.numpy() for name, weight in named_weights(load_model(tmp_path))}
    assert_same_weights(saved, weights_of(learner), atol=0)
    PolicyProcessor.load(tmp_path)


def test_without_a_row_to_learn_from_the_weights_stay(checkpoint, learner):
    crashed = [t for t in make_groups(checkpoint)[0].trajectories if t.end is EndReason.ENV_ERROR]
    before = weights_of(learner)
    metrics = learner.step([Group(task=crashed[0].task, trajectories=tuple(crashed))])
    assert metrics == {"num_rows": 0, "num_tokens": 0, "skipped_updates": 0}
    assert_same_weights(weights_of(learner), before, atol=0)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, np.nan),
        ({}, np.inf),
        ({"zero_stage": 2}, -np.inf),
        ({"zero_stage": 3}, np.nan),
        ({"dtype": "bfloat16"}, np.nan),
        ({"lora": LORA}, np.nan),
    ],
)
def test_an_update_that_is_not_finite_is_skipped_bit_for_bit(checkpoint, tmp_path, options, value):
    learner, groups = make_learner(checkpoint, **options), make_groups(checkpoint)
    learner.step(groups)
    save_state(learner, tmp_path)
    before = weights_of(learner)
    metrics = learner.step(poison(groups, value))
    assert metrics["skipped_updates"] == 1
    assert "loss" not in metrics
    assert_same_weights(weights_of(learner), before, atol=0)
    assert learner.step(groups)["skipped_updates"] == 0
    after = weights_of(learner)
    learner.load_state(tmp_path)
    learner.step(groups)
    assert_same_weights(weights_of(learner), after, atol=1e-6)  # nothing of the skipped gradient was left
    learner.close()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_finite_loss_whose_gradient_is_not_is_skipped_bit_for_bit(checkpoint, tmp_path, stage):
    """As of a square root at 0: the loss says nothing, hence the engine has to look at the gradient itself."""
    learner, groups = make_learner(checkpoint, zero_stage=stage), make_groups(checkpoint)
    learner.step(groups)
    save_state(learner, tmp_path)
    before, engine = weights_of(learner), learner._engine
    ids = torch.from_numpy(groups[0].trajectories[0].turns[0].token_ids).long()[None]
    inputs = PolicyProcessor.load(checkpoint).forward_inputs(ids, torch.ones_like(ids))
    inputs |= PolicyProcessor.load(checkpoint).pixel_inputs([groups[0].trajectories[0].turns[0].images])
    for root in (torch.sqrt, lambda zero: torch.sqrt(zero * 0)):  # infinity, and NaN
        total = token_logprobs(engine.model, inputs)[0].sum()
        loss = root(total - total.detach())
        assert loss.item() == 0
        engine.backward(loss, is_last=True)
        assert not math.isfinite(engine.step(1e-3))
        assert_same_weights(weights_of(learner), before, atol=0)
    learner.step(groups)
    after = weights_of(learner)
    learner.load_state(tmp_path)
    learner.step(groups)
    learner_again = weights_of(learner)
    learner.close()
    assert_same_weights(learner_again, after, atol=0)  # nothing of the skipped gradients was left
    assert any(not np.array_equal(weight, before[name]) for name, weight in after.items())


def test_only_the_update_that_is_not_finite_is_skipped(checkpoint):
    one_by_one = make_learner(checkpoint, minibatch_trajectories=1)
    before = weights_of(one_by_one)
    metrics = one_by_one.step(poison(make_groups(checkpoint), np.nan))
    assert metrics["skipped_updates"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    assert any(not np.array_equal(weight, before[name]) for name, weight in weights_of(one_by_one).items())
    one_by_one.close()


def test_a_state_that_does_not_fit_is_refused(checkpoint, learner, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rank_0\.pt is missing"):
        learner.load_state(tmp_path)
    save_state(learner, tmp_path)
    torch.save(torch.load(tmp_path / "rank_0.pt", weights_only=True) | {"world": 2}, tmp_path / "rank_0.pt")
    with pytest.raises(ValueError, match="world 2, this run has 1"):
        learner.load_state(tmp_path)


def test_a_master_without_port_is_refused(checkpoint):
    with pytest.raises(ValueError, match="host:port"):
        make_learner(checkpoint, master="localhost")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 2, 3, 3, 3, 3]),
        ("linear", [1, 2, 3, 2.25, 1.5, 0.75]),
        ("cosine", [1, 2, 3, 2.56066, 1.5, 0.43934]),
    ],
)
def test_the_learning_rate_warms_up_and_follows_the_schedule(schedule, expected):
    cfg = LearnerConfig(lr=3.0, warmup_steps=2, schedule=schedule)
    assert [learning_rate(cfg, step, 6) for step in range(6)] == pytest.approx(expected, abs=1e-5)
