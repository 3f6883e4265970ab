"""The objective, checked by hand."""

import math

import pytest
import torch

from rlvla.config import LossConfig
from rlvla.learner import loss

LN2 = math.log(2)
PLAIN = LossConfig(clip_low=0.2, clip_high=0.28, kl_coef=0.0, importance_cap=0.0)


def cost(
    *,
    logprob: float,
    old: float,
    advantage: float,
    sampler: float | None = None,
    cfg: LossConfig = PLAIN,
    **more: float,
) -> tuple[float, float, loss.TokenStats]:
    """Loss and its gradient for one sampled token."""
    logprobs = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)

    def tensor(value: float | None) -> torch.Tensor | None:
        return None if value is None else torch.tensor([[value]], dtype=torch.float64)

    values, stats = loss.grpo_token_loss(
        logprobs,
        old_logprobs=tensor(old),
        sampler_logprobs=tensor(old if sampler is None else sampler),
        ref_logprobs=tensor(more.get("ref")),
        entropy=tensor(more.get("entropy")),
        advantages=torch.tensor([advantage]),
        mask=torch.tensor([[True]]),
        cfg=cfg,
    )
    (gradient,) = torch.autograd.grad(values.sum(), logprobs)
    return values.item(), gradient.item(), stats


@pytest.mark.parametrize(
    ("logprob", "old", "advantage", "expected", "clipped"),
    [
        (-1.0, -1.0 - LN2, 1.0, (-1.28, 0), [False, True]),  # twice as likely: a good token stops gaining
        (-1.0 - LN2, -1.0, -1.0, (0.8, 0), [True, False]),  # half as likely: so does a bad one
        (-1.0, -1.0 - LN2, -1.0, (2, 2), [False, False]),  # a bad one that became likelier
    ],
)
def test_a_token_stops_gaining_beyond_its_clip(logprob, old, advantage, expected, clipped):
    value, gradient, stats = cost(logprob=logprob, old=old, advantage=advantage)
    assert (value, gradient) == pytest.approx(expected)
    assert [stats.is_clipped_low.item(), stats.is_clipped_high.item()] == clipped
    assert stats.ratio.item() == pytest.approx(math.exp(logprob - old))


@pytest.mark.parametrize(("cap", "weight"), [(0.0, 1.0), (1.5, 1.5), (3.0, 2.0)])
def test_the_importance_weight_is_capped_and_has_no_gradient(cap, weight):
    cfg = LossConfig(kl_coef=0.0, importance_cap=cap)
    value, gradient, stats = cost(logprob=-1.0, old=-1.0, sampler=-1.0 - LN2, advantage=1.0, cfg=cfg)
    assert value == pytest.approx(-weight)
    assert gradient == pytest.approx(-weight)
    assert stats.mismatch_kl.item() == pytest.approx(2 - LN2 - 1)


def test_the_importance_weight_is_that_of_the_old_policy_and_weighs_the_policy_term_alone():
    logprob, old, sampler, ref, entropy = -1.0, -1.1, -1.2, -1.5, 0.7
    cfg = LossConfig(kl_coef=0.1, entropy_coef=0.01, kl_estimator="k3", importance_cap=1.5)
    value, *_ = cost(logprob=logprob, old=old, sampler=sampler, advantage=2.0, cfg=cfg, ref=ref, entropy=entropy)
    kl = math.exp(ref - logprob) - (ref - logprob) - 1
    assert value == pytest.approx(-math.exp(old - sampler) * math.exp(logprob - old) * 2 + 0.1 * kl - 0.01 * entropy)


def test_the_three_kl_estimators():
    logprobs, ref = torch.tensor([-1.0]), torch.tensor([-1.0 - LN2])
    values = {name: loss.kl(logprobs, ref, name).item() for name in ("k1", "k2", "k3")}
    assert values == pytest.approx({"k1": LN2, "k2": LN2**2 / 2, "k3": 0.5 + LN2 - 1})


def test_each_estimators_gradient_is_that_of_a_divergence():
    """Averaged over a small categorical policy, and held against autograd through the exact divergences."""
    generator = torch.Generator().manual_seed(0)
    logits, ref = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    policy, reference = logits.log_softmax(0), ref.log_softmax(0)
    reverse = (policy.exp() * (policy - reference)).sum()
    forward = (reference.exp() * (reference - policy)).sum()
    exact = [torch.autograd.grad(divergence, logits, retain_graph=True)[0] for divergence in (reverse, forward)]
    for name, gradient in zip(("k1", "k2", "k3"), (exact[0], exact[0], exact[1]), strict=True):
        average = (policy.exp().detach() * loss.kl(policy, reference, name)).sum()
        torch.testing.assert_close(torch.autograd.grad(average, logits, retain_graph=True)[0], gradient)
        assert (average.item() == pytest.approx(reverse.item())) == (name != "k2")
    assert (exact[0] - exact[1]).abs().max() > 0.1
    naive = torch.autograd.grad((policy.exp().detach() * (policy - reference)).sum(), logits)[0]
    assert naive.abs().max() < 1e-12  # why k1 does not have the gradient of its value


def test_kl_and_entropy_are_added_with_their_coefficients():
    cfg = LossConfig(kl_coef=0.1, kl_estimator="k2", entropy_coef=0.01, importance_cap=0.0)
    value, _, stats = cost(logprob=-1.0, old=-1.0, advantage=1.0, ref=-3.0, entropy=5.0, cfg=cfg)
    assert value == pytest.approx(-1 + 0.1 * 2 - 0.01 * 5)
    assert stats.kl.item() == pytest.approx(2)


def test_an_exact_divergence_takes_the_estimates_place() -> None:
    """KL of two normals of equal deviation, 0.3 apart by 0.1 deviations each in two dimensions."""
    centres, other = torch.tensor([[[0.3, 0.1]]], requires_grad=True), torch.tensor([[[0.0, -0.3]]])
    zeros = torch.zeros(1, 1)
    values, stats = loss.grpo_token_loss(
        zeros,
        old_logprobs=zeros,
        sampler_logprobs=zeros,
        ref_logprobs=zeros,
        exact_kl=(centres - other).square().sum(-1) / 2,
        entropy=None,
        advantages=torch.zeros(1),
        mask=torch.ones(1, 1, dtype=torch.bool),
        cfg=LossConfig(kl_coef=2.0, kl_estimator="exact"),
    )
    normals = [torch.distributions.Normal(mean[0, 0], 1.0) for mean in (centres, other)]
    expected = torch.distributions.kl_divergence(*normals).sum()
    assert stats.kl.item() == pytest.approx(expected.item())
    assert values.item() == pytest.approx(2 * expected.item())
    gradient = torch.autograd.grad(values.sum(), centres)[0]
    torch.testing.assert_close(gradient, 2 * (centres - other).detach())


def test_nothing_off_the_mask_counts_whatever_stands_there():
    logprobs = torch.tensor([[-1.0, -500.0]], requires_grad=True)
    nonsense = torch.tensor([[-1.0, math.inf]])
    values, stats = loss.grpo_token_loss(
        logprobs,
        old_logprobs=nonsense,
        sampler_logprobs=nonsense,
        ref_logprobs=nonsense,
        entropy=None,
        advantages=torch.tensor([1.0]),
        mask=torch.tensor([[True, False]]),
        cfg=LossConfig(),
    )
    values.sum().backward()
    assert values.tolist() == [[-1.0, 0.0]]
    (gradient,) = logprobs.grad
    assert gradient[1] == 0
    assert gradient.isfinite().all()
    assert stats.kl[0, 1] == stats.mismatch_kl[0, 1] == stats.ratio[0, 1] == 0


@pytest.mark.parametrize(
    ("average", "expected"),
    [("token", [1 / 10] * 3), ("trajectory", [1 / 8, 1 / 8, 1 / 12]), ("constant", [1 / 200] * 3)],
)
def test_the_three_averages(average, expected):
    # Trajectory 7 has turns of 1 and 3 sampled tokens, trajectory 9 one of 6.
    weights = loss.token_weights(torch.tensor([1, 3, 6]), torch.tensor([7, 7, 9]), average, constant_length=100)
    assert weights.tolist() == pytest.approx(expected)
