"""Envs before anything is played: one evaluates on its training states, one notes something, one counts in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium
import numpy as np


class Leaky(gymnasium.Env):
    """Only what an evaluation asks before it plays."""

    suite = "leaky"
    task_names = ("peek",)
    splits = dict.fromkeys(("train", "evaluate", "official"), range(10))

    def __init__(
        self,
        table: str,
        cameras: Sequence[str] = ("front",),
        settle_steps: int = 10,
        folder: Path = Path("scenes"),
        judge: Callable[..., bool] = lambda: True,
    ) -> None:
        """None of it matters here."""

    def max_env_steps(self, task_id: int) -> int:
        return 7

    def init_state_ids(self, task_id: int, split: str) -> Sequence[int]:
        return self.splits[split]


class Noted(Leaky):
    """Its official states are others than those to train on, and are not quite the official ones."""

    split_notes = {"official": "the table stands 1 cm further left"}  # noqa: RUF012
    splits = {"train": range(10, 20), "evaluate": range(4), "official": range(4)}  # noqa: RUF012


class Numbered(Leaky):
    """Its ids come out of NumPy; those to evaluate on are no integers."""

    suite = "numbered"
    splits = {"train": np.arange(3), "evaluate": np.array([3.0, 4.0]), "official": np.arange(5, 9, dtype=np.uint8)}  # noqa: RUF012


class Two(Leaky):
    """Two tasks, and a benchmark that says how long to let things settle."""

    task_names = ("peek", "reach")
    official_kwargs = {"settle_steps": 10}  # noqa: RUF012

    def __init__(self, table: str, settle_steps: int = 10, num_trained: int = 0) -> None:
        """So many of its official states are states to train on."""
        self.splits = {"train": range(4 - num_trained, 20), "evaluate": range(4), "official": range(4)}


for _class in (Leaky, Noted, Numbered, Two):
    gymnasium.register(
        id=f"lab/{_class.__name__}-v0",
        entry_point=f"leaky_env:{_class.__name__}",
        kwargs={"table": "low"},
        disable_env_checker=True,
        order_enforce=False,
    )
