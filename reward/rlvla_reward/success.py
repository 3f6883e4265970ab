"""Task success, the paper's sparse reward."""

from __future__ import annotations

from rlvla.types import Trajectory


def success(trajectory: Trajectory) -> float:
    """1.0 if the simulator's goal predicate held at the end, else 0.0 (VLA-Thinker, arXiv 2603.14523, r_success)."""
    return float(trajectory.success)
