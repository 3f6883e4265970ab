"""An env whose simulator forks a child that does not end with it and holds all that it had open."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class ForkingEnv(gymnasium.Env):
    suite = "forking"
    task_names = ("last",)

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        pid = os.fork()
        if not pid:
            signal.pause()
            os._exit(0)
        (self._folder / "child").write_text(str(pid))
        return {"images": np.zeros((1, 8, 8, 3), np.uint8), "proprio": np.zeros(1), "instruction": "fork"}, {}

    def close(self) -> None:
        time.sleep(60)


gymnasium.register("forking/Env-v0", ForkingEnv)
