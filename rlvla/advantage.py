"""Group-relative advantages: how much better a trajectory was than the others from the same initial state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rlvla.config import AdvantageConfig
from rlvla.types import EndReason, Group, Trajectory

_ROUNDING = 1e-9
"""Rewards whose distance from their mean is below this share of the largest are equal up to rounding."""


def with_advantages(group: Group, cfg: AdvantageConfig, weights: Mapping[str, float] | None = None) -> Group:
    """Fill in the advantage of every trajectory of a scored group.

    `sum_first` normalises `trajectory.reward`; `normalize_first` normalises each of `reward_terms` by itself and adds
    them up with their weights. Trajectories that ended in ENV_ERROR take no part, and their advantage stays None.

    Args:
        group: with rewards.
        cfg: which normalisation.
        weights: reward term -> weight; read by `normalize_first`, where None weighs every term 1.

    Raises:
        ValueError: a trajectory has no reward, or not the reward terms that the others or `weights` have.
    """
    valid = [i for i, t in enumerate(group.trajectories) if t.end is not EndReason.ENV_ERROR]
    scored = [group.trajectories[i] for i in valid]
    if cfg.combine == "sum_first":
        values = advantages(_rewards(scored), cfg)
    else:
        terms = _terms(scored, weights)
        values = sum((weight * advantages(term, cfg) for weight, term in terms), np.zeros(len(scored)))
    by_index = dict(zip(valid, values.tolist(), strict=True))
    trajectories = (replace(t, advantage=by_index.get(i)) for i, t in enumerate(group.trajectories))
    return replace(group, trajectories=tuple(trajectories))


def advantages(rewards: np.ndarray, cfg: AdvantageConfig) -> np.ndarray:
    """`A_i = (R_i - mean(R)) / (std(R) + eps)`, GRPO (arXiv 2402.03300, section 4.1.2).

    Without `normalize_std` the divisor is 1, which is Dr.GRPO (arXiv 2503.20783). The standard deviation is the
    population's. Equal rewards give exactly 0: eps would otherwise blow their rounding errors up. One reward that is
    not finite makes all advantages of the group NaN, and the learner skip its update.

    Args:
        rewards: [G] float.
        cfg: `normalize_std` and `eps`.

    Returns:
        [G] float64.
    """
    rewards = np.asarray(rewards, np.float64)
    if len(rewards) == 0:
        return rewards
    if not np.isfinite(rewards).all():
        return np.full_like(rewards, np.nan)
    centred = rewards - rewards.mean()
    if np.abs(centred).max() <= _ROUNDING * np.abs(rewards).max():
        return np.zeros_like(centred)
    return centred / (rewards.std() + cfg.eps) if cfg.normalize_std else centred


def _rewards(trajectories: list[Trajectory]) -> np.ndarray:
    if any(t.reward is None for t in trajectories):
        raise ValueError("a trajectory has no reward: score the group before asking for its advantages")
    return np.array([t.reward for t in trajectories], np.float64)


def _terms(trajectories: list[Trajectory], weights: Mapping[str, float] | None) -> list[tuple[float, np.ndarray]]:
    """Each reward term's weight and values [G]."""
    if not trajectories:
        return []
    names = list(trajectories[0].reward_terms)
    weights = dict.fromkeys(names, 1.0) if weights is None else weights
    for trajectory in trajectories:
        if set(trajectory.reward_terms) != set(weights):
            raise ValueError(
                f"advantage.combine normalize_first: a trajectory has the reward terms "
                f"{sorted(trajectory.reward_terms)}, but the weights are for {sorted(weights)}"
            )
    return [(weights[name], np.array([t.reward_terms[name] for t in trajectories])) for name in names]
