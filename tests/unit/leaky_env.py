"""An env whose evaluation states are its training states, to be refused."""

from __future__ import annotations

import gymnasium


class Leaky(gymnasium.Env):
    """Only what an evaluation asks before it plays."""

    suite = "leaky"
    task_names = ("peek",)

    def init_state_ids(self, task_id: int, split: str) -> range:
        return range(10)


gymnasium.register(id="lab/Leaky-v0", entry_point="leaky_env:Leaky", disable_env_checker=True, order_enforce=False)
