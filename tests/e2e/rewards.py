"""A reward plugin in a file: it tells any two trajectories apart, so that even an untrained policy gets a gradient."""

from __future__ import annotations

import random

import numpy as np
import torch

from rlvla import Trajectory


def odd_tokens(trajectory: Trajectory) -> float:
    """Share of odd ids among the sampled tokens."""
    sampled = [turn.token_ids[turn.loss_mask] for turn in trajectory.turns]
    return float(np.mean(np.concatenate(sampled) % 2)) if sampled else 0.0


class Moods:
    """1.0 for every third trajectory, and for some by chance: what a resumed run gets wrong if it forgets anything."""

    def __init__(self) -> None:
        self._num_calls = 0

    def __call__(self, trajectory: Trajectory) -> float:
        self._num_calls += 1
        is_lucky = random.random() < 0.15 or np.random.rand() < 0.15 or float(torch.rand(())) < 0.15
        return float(self._num_calls % 3 == 0 or is_lucky)

    def state_dict(self) -> dict[str, int]:
        return {"num_calls": self._num_calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._num_calls = state["num_calls"]


moods = Moods()
