"""Advantages and loss against the papers' formulas, written once more as plain loops over Python floats."""

import itertools
import math

import numpy as np
import pytest
import torch

from rlvla.config import AdvantageConfig, LossConfig
from rlvla.learner import loss
from rlvla.learner.advantage import advantages

LENGTHS = ((3, 2), (4,), (1, 5, 2), (6,))
"""Sampled tokens of each turn of each trajectory."""
REWARDS = (1.0, 0.1, 0.0, 1.1)


def oracle_advantages(rewards: tuple[float, ...], cfg: AdvantageConfig) -> list[float]:
    mean = sum(rewards) / len(rewards)
    variance = sum((r - mean) ** 2 for r in rewards) / len(rewards)
    divisor = math.sqrt(variance) + cfg.eps if cfg.normalize_std else 1.0
    return [(r - mean) / divisor for r in rewards]


def oracle_token(logprob: float, old: float, sampler: float, ref: float, entropy: float, a: float, cfg: LossConfig):
    ratio = math.exp(logprob - old)
    clipped = min(max(ratio, 1 - cfg.clip_low), 1 + cfg.clip_high)
    value = -min(ratio * a, clipped * a)
    if cfg.importance_cap:
        value *= min(math.exp(old - sampler), cfg.importance_cap)
    r = ref - logprob
    divergence = {"k1": -r, "k2": r * r / 2, "k3": math.exp(r) - r - 1}[cfg.kl_estimator]
    return value + cfg.kl_coef * divergence - cfg.entropy_coef * entropy


def oracle_objective(values: dict[str, np.ndarray], cfg: LossConfig) -> float:
    """`values[name][row, token]`, rows in the order of LENGTHS, their tokens from column 1 on."""
    gains = oracle_advantages(REWARDS, AdvantageConfig())
    row = itertools.count()
    per_trajectory: list[list[float]] = []
    for trajectory, turns in enumerate(LENGTHS):
        costs = []
        for length in turns:
            b = next(row)
            for t in range(1, 1 + length):
                token = [float(values[n][b, t]) for n in ("logprobs", "old", "sampler", "ref", "entropy")]
                costs.append(oracle_token(*token, gains[trajectory], cfg))
        per_trajectory.append(costs)
    everything = [cost for costs in per_trajectory for cost in costs]
    if cfg.average == "token":
        return sum(everything) / len(everything)
    if cfg.average == "trajectory":
        return sum(sum(costs) / len(costs) for costs in per_trajectory) / len(per_trajectory)
    return sum(everything) / (len(per_trajectory) * cfg.constant_length)


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (sum(len(turns) for turns in LENGTHS), 9)
    return {name: rng.normal(-2, 0.4, shape) for name in ("logprobs", "old", "sampler", "ref", "entropy")}


@pytest.mark.parametrize("normalize_std", [True, False])
def test_advantages_equal_the_loops(normalize_std):
    cfg = AdvantageConfig(normalize_std=normalize_std)
    np.testing.assert_allclose(advantages(np.array(REWARDS), cfg), oracle_advantages(REWARDS, cfg), rtol=1e-12)


@pytest.mark.parametrize("average", ["token", "trajectory", "constant"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("cap", [0.0, 1.2])
def test_the_objective_equals_the_loops(values, average, estimator, cap):
    cfg = LossConfig(
        clip_low=0.1,
        clip_high=0.3,
        kl_coef=0.05,
        kl_estimator=estimator,
        average=average,
        constant_length=7,
        entropy_coef=0.02,
        importance_cap=cap,
    )
    lengths = torch.tensor([length for turns in LENGTHS for length in turns])
    trajectory = torch.tensor([i for i, turns in enumerate(LENGTHS) for _ in turns])
    columns = torch.arange(9)
    mask = (columns >= 1) & (columns < 1 + lengths[:, None])
    tensors = {name: torch.from_numpy(array) for name, array in values.items()}
    gains = torch.from_numpy(advantages(np.array(REWARDS), AdvantageConfig()))
    token_loss, _ = loss.grpo_token_loss(
        tensors["logprobs"],
        old_logprobs=tensors["old"],
        sampler_logprobs=tensors["sampler"],
        ref_logprobs=tensors["ref"],
        entropy=tensors["entropy"],
        advantages=gains[trajectory],
        mask=mask,
        cfg=cfg,
    )
    weights = loss.token_weights(lengths, trajectory, average, cfg.constant_length)
    objective = float((token_loss * weights[:, None]).sum())
    assert objective == pytest.approx(oracle_objective(values, cfg), rel=1e-10, abs=1e-10)
