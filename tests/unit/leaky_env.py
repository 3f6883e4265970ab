"""Envs before anything is played: one whose evaluation states are its training states, one that notes something."""

from __future__ import annotations

import gymnasium


class Leaky(gymnasium.Env):
    """Only what an evaluation asks before it plays."""

    suite = "leaky"
    task_names = ("peek",)

    def init_state_ids(self, task_id: int, split: str) -> range:
        return range(10)


class Noted(Leaky):
    """Its official states are others than those to train on, and are not quite the official ones."""

    split_notes = {"official": "the table stands 1 cm further left"}  # noqa: RUF012

    def init_state_ids(self, task_id: int, split: str) -> range:
        return {"train": range(10, 20), "evaluate": range(4), "official": range(4)}[split]


gymnasium.register(id="lab/Leaky-v0", entry_point="leaky_env:Leaky", disable_env_checker=True, order_enforce=False)
gymnasium.register(id="lab/Noted-v0", entry_point="leaky_env:Noted", disable_env_checker=True, order_enforce=False)
