"""The tabletop on a machine of its own: its steps take wall time here, and no CPU."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np

from rlvla_envs.tabletop.env import TabletopEnv


class WaitingEnv(TabletopEnv):
    """Args: `wait_s`, seconds that each chunk takes at least; the others are the tabletop's."""

    def __init__(self, wait_s: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._wait_s = wait_s

    def step_chunk(self, actions: np.ndarray) -> Any:
        """See `VLAEnv.step_chunk`."""
        time.sleep(self._wait_s)
        return super().step_chunk(actions)


gymnasium.register(
    id="rlvla/Waiting-v0", entry_point="waiting_env:WaitingEnv", disable_env_checker=True, order_enforce=False
)
