"""Group-relative advantages: how much better a trajectory was than the others from the same initial state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rlvla.config import AdvantageConfig
from rlvla.types import EndReason, Group, Trajectory

_ROUNDING = 1e-9
"""Rewards whose distance from their mean is below this share of the largest are equal up to rounding."""


def with_advantages(
    group: Group, cfg: AdvantageConfig, weights: Mapping[str, float] | None = None, *, mask_context_full: bool = True
) -> Group:
    """Fill in the advantage of every trajectory of a scored group.

    `sum_first` normalises `trajectory.reward`; `normalize_first` normalises each of `reward_terms` by itself and adds
    them up with their weights. Where the terms that make signal (`trajectory.signal`) do not vary, all advantages are
    0: dividing by the standard deviation would blow a difference of 0.003 in format up to a success's strength. So
    SimpleVLA-RL filters groups by accuracy, whatever else is in the reward (arXiv 2509.09674;
    verl/trainer/ppo/ray_trainer.py).

    What is left out of the loss is left out of mean, standard deviation and signal: a trajectory that ended in
    ENV_ERROR, whose advantage stays None, and a masked CONTEXT_FULL, whose advantage is 0. A reward that is not finite
    drops its group: all advantages are None.

    Args:
        group: with rewards.
        cfg: which normalisation.
        weights: reward term -> weight; read by `normalize_first`, where None weighs every term 1.
        mask_context_full: see `GRPOConfig`.

    Raises:
        ValueError: a trajectory has no reward, or not the reward terms that the others or `weights` have.
    """
    takes_part = [t.takes_part(mask_context_full=mask_context_full) for t in group.trajectories]
    scored = [t for t, takes in zip(group.trajectories, takes_part, strict=True) if takes]
    if any(t.reward is None for t in scored):
        raise ValueError("a trajectory has no reward: score the group before asking for its advantages")
    rewards = np.array([t.reward for t in scored], np.float64)
    if not np.isfinite(rewards).all():
        return replace(group, trajectories=tuple(replace(t, advantage=None) for t in group.trajectories))
    if _is_constant(np.array([t.reward if t.signal is None else t.signal for t in scored], np.float64)):
        values = np.zeros(len(scored))
    elif cfg.combine == "sum_first":
        values = advantages(rewards, cfg)
    else:
        terms = _terms(scored, weights)
        values = sum((weight * advantages(term, cfg) for weight, term in terms), np.zeros(len(scored)))
    given = iter(values.tolist())
    trajectories = [
        replace(t, advantage=next(given) if takes else None if t.end is EndReason.ENV_ERROR else 0.0)
        for t, takes in zip(group.trajectories, takes_part, strict=True)
    ]
    return replace(group, trajectories=tuple(trajectories))


def advantages(rewards: np.ndarray, cfg: AdvantageConfig) -> np.ndarray:
    """`A_i = (R_i - mean(R)) / (std(R) + eps)` [G] float64 of finite rewards [G], GRPO (arXiv 2402.03300, 4.1.2).

    Without `normalize_std` the divisor is 1, which is Dr.GRPO (arXiv 2503.20783). The standard deviation is the
    population's. Equal rewards give exactly 0: eps would otherwise blow their rounding errors up.
    """
    rewards = np.asarray(rewards, np.float64)
    if _is_constant(rewards):
        return np.zeros_like(rewards)
    centred = rewards - rewards.mean()
    return centred / (rewards.std() + cfg.eps) if cfg.normalize_std else centred


def _is_constant(values: np.ndarray) -> bool:
    """Whether they are equal up to rounding, or none."""
    return not len(values) or bool(np.abs(values - values.mean()).max() <= _ROUNDING * np.abs(values).max())


def _terms(trajectories: list[Trajectory], weights: Mapping[str, float] | None) -> list[tuple[float, np.ndarray]]:
    """Weight and values [G] of each reward term that has a weight."""
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
    return [(weights[name], np.array([t.reward_terms[name] for t in trajectories])) for name in names if weights[name]]
