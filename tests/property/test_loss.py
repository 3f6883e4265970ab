"""What must hold for any log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvla.config import LossConfig
from rlvla.learner import collate, loss
from rlvla.types import SegmentKind
from tests.trajectories import make_turn

LOGPROBS = st.lists(st.floats(-20, 0), min_size=1, max_size=20)
CONFIGS = st.builds(
    LossConfig,
    clip_low=st.sampled_from([0.1, 0.2]),
    clip_high=st.sampled_from([0.2, 0.28]),
    kl_coef=st.sampled_from([0.0, 0.1]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    average=st.sampled_from(["token", "trajectory", "constant"]),
    entropy_coef=st.sampled_from([0.0, 0.01]),
    importance_cap=st.sampled_from([0.0, 1.5]),
)


@dataclass(frozen=True)
class Case:
    """Rows, and for each of them four rows of numbers in place of a model: logprobs, old, ref, entropy."""

    rows: list[collate.Row]
    numbers: list[torch.Tensor]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    rows, numbers = [], []
    for i in range(draw(st.integers(1, 6))):
        sizes = rng.integers(1, 5, 4)
        kinds = (SegmentKind.PROMPT, SegmentKind.TOOL_CALL, SegmentKind.TOOL_RESULT, SegmentKind.ACT)
        turn = make_turn(tuple(zip(kinds, sizes.tolist(), strict=True)), sampler_logprob=-1.5)
        rows.append(collate.to_row(turn, advantage=rng.normal(), trajectory=i // 2))
        numbers.append(torch.from_numpy(rng.normal(-1.5, 0.3, (4, sizes.sum()))))
    return Case(rows, numbers)


def objective(
    case: Case, cfg: LossConfig, micro_batches: list[list[int]], padding: int = 0
) -> tuple[float, np.ndarray]:
    """The objective, added up over micro-batches of row numbers, and its gradient by every logprob."""
    weights = loss.token_weights(
        torch.tensor([row.num_sampled_tokens for row in case.rows]),
        torch.tensor([row.trajectory for row in case.rows]),
        cfg.average,
        cfg.constant_length,
    )
    leaves = [numbers[0].clone().requires_grad_() for numbers in case.numbers]
    total = torch.zeros((), dtype=torch.float64)
    for numbers_of_rows in micro_batches:
        batch = collate.to_batch([case.rows[i] for i in numbers_of_rows])
        length = batch.loss_mask.shape[1] + padding

        def padded(tensors: list[torch.Tensor], length: int = length) -> torch.Tensor:
            return torch.stack([torch.nn.functional.pad(t, (0, length - len(t)), value=-3.0) for t in tensors])

        old, ref, entropy = (padded([case.numbers[i][k] for i in numbers_of_rows]) for k in (1, 2, 3))
        mask = torch.nn.functional.pad(batch.loss_mask, (0, padding))
        values, _ = loss.grpo_token_loss(
            padded([leaves[i] for i in numbers_of_rows]),
            old_logprobs=old,
            sampler_logprobs=torch.nn.functional.pad(batch.sampler_logprobs, (0, padding)),
            ref_logprobs=ref,
            entropy=entropy,
            advantages=batch.advantages,
            mask=mask,
            cfg=cfg,
        )
        total = total + (values * weights[numbers_of_rows, None]).sum()
    total.backward()
    return total.item(), torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None]).numpy()


def assert_same(left: tuple[float, np.ndarray], right: tuple[float, np.ndarray]) -> None:
    np.testing.assert_allclose(left[0], right[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(left[1], right[1], rtol=1e-12, atol=1e-14)


@given(cases(), CONFIGS, st.data())
def test_row_order_micro_batches_and_padding_do_not_matter(case, cfg, data):
    order = data.draw(st.permutations(range(len(case.rows))))
    cut = data.draw(st.integers(0, len(order)))
    parts = [part for part in (order[:cut], order[cut:]) if part]
    whole = objective(case, cfg, [list(range(len(order)))])
    assert_same(objective(case, cfg, parts, padding=data.draw(st.integers(0, 3))), whole)


@given(cases(), CONFIGS)
def test_the_gradient_is_exactly_zero_on_tokens_that_were_not_sampled(case, cfg):
    _, gradient = objective(case, cfg, [list(range(len(case.rows)))])
    mask = np.concatenate([row.loss_mask for row in case.rows])
    assert (gradient[~mask] == 0).all()


@given(cases(), st.sampled_from(["token", "trajectory", "constant"]))
def test_at_ratio_1_the_gradient_is_reinforce(case, average):
    on_policy = Case(case.rows, [numbers[:1].repeat(4, 1) for numbers in case.numbers])
    cfg = LossConfig(kl_coef=0.0, importance_cap=0.0, average=average)
    _, gradient = objective(on_policy, cfg, [list(range(len(case.rows)))])
    weights = loss.token_weights(
        torch.tensor([row.num_sampled_tokens for row in case.rows]),
        torch.tensor([row.trajectory for row in case.rows]),
        average,
        cfg.constant_length,
    )
    expected = [-w * np.float32(r.advantage) * r.loss_mask for w, r in zip(weights.tolist(), case.rows, strict=True)]
    np.testing.assert_allclose(gradient, np.concatenate(expected), rtol=1e-6)


@given(LOGPROBS, st.data())
def test_k3_is_never_negative_and_all_are_zero_for_equal_policies(logprobs, data):
    policy = torch.tensor(logprobs)
    ref = torch.tensor(data.draw(st.lists(st.floats(-20, 0), min_size=len(logprobs), max_size=len(logprobs))))
    assert (loss.kl(policy, ref, "k3") >= 0).all()
    assert (loss.kl(policy, ref, "k2") >= 0).all()
    for estimator in ("k1", "k2", "k3"):
        assert (loss.kl(policy, policy, estimator) == 0).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_token_and_trajectory_averages_weigh_all_tokens_together_1(num_tokens, data):
    size = len(num_tokens)
    trajectory = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    for average in ("token", "trajectory"):
        weights = loss.token_weights(torch.tensor(num_tokens), trajectory, average)
        assert abs(float((weights * torch.tensor(num_tokens)).sum()) - 1) < 1e-12
