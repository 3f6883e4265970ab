"""A reward plugin in a file: it tells any two trajectories apart, so that even an untrained policy gets a gradient."""

from __future__ import annotations

import numpy as np

from rlvla import Trajectory


def odd_tokens(trajectory: Trajectory) -> float:
    """Share of odd ids among the sampled tokens."""
    sampled = [turn.token_ids[turn.loss_mask] for turn in trajectory.turns]
    return float(np.mean(np.concatenate(sampled) % 2)) if sampled else 0.0
