"""A reward plugin that stops one of the run's actors, once a test asks for it: the phase of the step is then known.

Rewards are computed in the driver, behind the rollout and before the step learns.
"""

from __future__ import annotations

import os
from pathlib import Path

from rlvla import Trajectory
from tests.e2e.rewards import odd_tokens
from tests.e2e.run import actors


def freeze(trajectory: Trajectory, *, actor: str, folder: str) -> float:
    """`odd_tokens`; where there is a file `folder/freeze`, the actor is suspended and `folder/frozen` tells its pid."""
    asked = Path(folder) / "freeze"
    if asked.exists():
        (process,) = actors(os.getpid(), actor)
        process.suspend()
        asked.write_text(str(process.pid))
        asked.rename(asked.with_name("frozen"))
    return odd_tokens(trajectory)
