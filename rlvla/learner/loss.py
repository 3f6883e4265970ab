"""The objective, as pure functions of log-probabilities [B, L].

    objective = sum over sampled tokens of weight * token_loss

where `token_weights` decides how tokens are averaged, and `grpo_token_loss` what each one costs.
Since weights are computed over the whole minibatch, the sum may be split over micro-batches and ranks at will.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlvla.config import LossConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """Per-token measurements [B, L], detached, 0 where the token was not sampled."""

    kl: torch.Tensor
    """KL(policy || reference), in nats; 0 without a reference."""
    mismatch_kl: torch.Tensor
    """KL(sampler || learner before this step), k3, in nats."""
    ratio: torch.Tensor
    """policy / old probability."""
    is_clipped_low: torch.Tensor
    """bool: the gradient is cut because the token was made less likely enough."""
    is_clipped_high: torch.Tensor
    """bool: the gradient is cut because the token was made more likely enough."""


def kl(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimate KL(policy || reference) at tokens that the policy sampled (http://joschu.net/blog/kl-approx.html).

    With `r = ref_logprobs - logprobs`, what each is on average over the policy's tokens:

        name  value             its average                         its gradient's average
        k1    -r                KL(policy || reference), exactly    that of KL(policy || reference), as it is k2's here
        k2    r^2 / 2           near it where the two are close     that of KL(policy || reference)
        k3    exp(r) - r - 1    KL(policy || reference), exactly    that of KL(reference || policy)

    k1's own gradient is 0 on average, whatever the reference: as a loss it would hold nothing. Its value hence passes
    straight through to k2's gradient (OpenRLHF pull request 1101). k3 is GRPO's (arXiv 2402.03300, equation 4), never
    negative; its gradient `(1 - exp(r)) * grad logprob` makes the policy cover all that the reference does (verl pull
    request 2953). All of this holds for tokens drawn from this very policy; later minibatches are a little off it.

    Log-probabilities are of any shape, the same for both.
    """
    r = ref_logprobs - logprobs
    half_square = r.square() / 2
    if estimator == "k1":
        return half_square + (-r - half_square).detach()
    if estimator == "k2":
        return half_square
    return torch.expm1(r) - r


def grpo_token_loss(
    logprobs: torch.Tensor,
    *,
    old_logprobs: torch.Tensor,
    sampler_logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor | None,
    exact_kl: torch.Tensor | None = None,
    entropy: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cfg: LossConfig,
) -> tuple[torch.Tensor, TokenStats]:
    """What each sampled token costs (arXiv 2402.03300, equation 3, with DAPO's two clips, arXiv 2503.14476).

        rho  = exp(logprob - old_logprob)
        w    = min(exp(old_logprob - sampler_logprob), importance_cap)      no gradient; 1 when the cap is 0
        loss = -w * min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) + kl_coef * KL - entropy_coef * H

    `w` corrects that the sampler, another program with another arithmetic, drew the tokens.

    Args:
        logprobs: [B, L] of the policy, with gradient.
        old_logprobs: [B, L] of the policy before this step's first update.
        sampler_logprobs: [B, L] of the sampler.
        ref_logprobs: [B, L] of the reference; None: no KL term.
        exact_kl: [B, L] of the policy and the reference, with gradient, in place of an estimate.
        entropy: [B, L]; None: no entropy term.
        advantages: [B].
        mask: [B, L] bool, True where the policy sampled the token.
        cfg: coefficients.

    Returns:
        loss [B, L], 0 with gradient exactly 0 off the mask, and the measurements.
    """
    zero = logprobs.new_zeros(())
    ratio = torch.where(mask, logprobs - old_logprobs.detach(), zero).exp()
    advantage = advantages[:, None].to(logprobs.dtype)
    clipped = ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    mismatch = torch.where(mask, old_logprobs - sampler_logprobs, zero).detach()
    if cfg.importance_cap:
        loss = loss * mismatch.exp().clamp(max=cfg.importance_cap)
    divergence = torch.zeros_like(logprobs)
    if ref_logprobs is not None:
        if exact_kl is not None:
            divergence = torch.where(mask, exact_kl, zero)
        else:
            divergence = kl(logprobs, torch.where(mask, ref_logprobs, logprobs.detach()), cfg.kl_estimator)
        loss = loss + cfg.kl_coef * divergence
    if entropy is not None:
        loss = loss - cfg.entropy_coef * entropy
    stats = TokenStats(
        kl=torch.where(mask, divergence, zero).detach(),
        mismatch_kl=torch.expm1(mismatch) - mismatch,
        ratio=torch.where(mask, ratio, zero).detach(),
        is_clipped_low=mask & (advantage < 0) & (ratio < 1 - cfg.clip_low),
        is_clipped_high=mask & (advantage > 0) & (ratio > 1 + cfg.clip_high),
    )
    return torch.where(mask, loss, zero), stats


def token_weights(
    num_tokens: torch.Tensor, trajectory: torch.Tensor, average: str, constant_length: int = 1
) -> torch.Tensor:
    """The weight of each sampled token of each row of a minibatch, so that a plain sum is the average asked for.

    `token`: 1 / sampled tokens in the minibatch (DAPO). `trajectory`: 1 / (trajectories * sampled tokens of the
    token's trajectory, over all its turns) (GRPO). `constant`: 1 / (trajectories * constant_length) (Dr.GRPO).

    [B] float64, from the sampled tokens of each row [B], at least 1, and its trajectory [B], in any numbering.
    """
    num_tokens = num_tokens.double()
    names, index = trajectory.unique(return_inverse=True)
    if average == "token":
        return torch.full_like(num_tokens, 1 / float(num_tokens.sum()))
    if average == "trajectory":
        per_trajectory = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, num_tokens)
        return 1 / (len(names) * per_trajectory[index])
    return torch.full_like(num_tokens, 1 / (len(names) * constant_length))
