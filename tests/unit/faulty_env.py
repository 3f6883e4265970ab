"""The scripted env: it meets a fault where a test puts one (`plant`), and a signal at that moment (`meet`)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

INSTRUCTION = "hold out"
WAIT_S = 30.0
"""Of either side for the other; far beyond the deadlines of the tests."""


def plant(folder: Path, where: str, *faults: str) -> None:
    """What each call of method `where` does from now on: wait for a `meet`, or one of `_suffer`; `go` does nothing."""
    for i, fault in enumerate(faults):
        (folder / f"{where}-{i}.fault").write_text(fault)


def let_go(folder: Path, where: str) -> None:
    """What `meet` does, without a signal."""
    (folder / f"{where}.at").unlink()
    (folder / f"{where}.go").touch()


def meet(folder: Path, where: str, sent: int) -> int:
    """Wait until a call of `where` has begun, signal its process by its id, let the call go on; returns the id."""
    at = folder / f"{where}.at"
    _wait_for(at)
    pid = int(at.read_text())
    at.unlink()
    os.kill(pid, sent)
    (folder / f"{where}.go").touch()
    return pid


def _wait_for(path: Path) -> None:
    until = time.monotonic() + WAIT_S
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} did not come"
        time.sleep(0.002)


def view(seed: int, side: int) -> np.ndarray:
    """A picture of its own for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


class FaultyEnv(gymnasium.Env):
    """Succeeds after two chunks, of which each changes all views.

    Args:
        folder: it has the faults, and gets a file for each env made and closed; without one nothing goes wrong.
        num_cameras: views of an observation.
        side: of a view, pixels.
    """

    suite = "faulty"
    task_names = ("last",)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, folder: str = "", num_cameras: int = 1, side: int = 64) -> None:
        self._folder, self._chunks, self._side = Path(folder) if folder else None, 0, side
        images = gymnasium.spaces.Box(0, 255, (num_cameras, side, side, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"images": images})
        self._name = f"{os.getpid()}-{time.monotonic_ns()}"
        self._note("made")

    @classmethod
    def preload(cls, folder: str) -> None:
        (Path(folder) / f"{os.getpid()}.preloaded").touch()

    def init_state_ids(self, task_id: int, split: str) -> range:
        return range(10)

    def max_env_steps(self, task_id: int) -> int:
        return 100

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._chunks = 0
        self._do("reset")
        return self._observe(), {}

    def step_chunk(self, actions: np.ndarray) -> Any:
        self._do("step_chunk")
        self._chunks += 1
        ended = self._chunks == 2
        return self._observe(), np.zeros(len(actions), np.float32), ended, False, {"is_success": ended}

    def zoom(self, image: int, bbox: Any) -> np.ndarray:
        if self._do("zoom") == "return a function":
            return lambda: None  # type: ignore[return-value]
        return view(hash((image, tuple(bbox), self._chunks)) % 1000, self._side)

    def close(self) -> None:
        self._do("close")
        self._note("closed")

    def _note(self, what: str) -> None:
        if self._folder is not None:
            (self._folder / f"{self._name}.{what}").touch()

    def _observe(self) -> dict[str, Any]:
        num_cameras = self.observation_space["images"].shape[0]
        images = np.stack([view(1000 * camera + self._chunks, self._side) for camera in range(num_cameras)])
        return {"images": images, "proprio": np.zeros(4), "instruction": INSTRUCTION}

    def _do(self, where: str) -> str:
        for path in sorted(self._folder.glob(f"{where}-*.fault")) if self._folder else ():
            with contextlib.suppress(FileNotFoundError):  # another env was faster
                fault = path.rename(path.with_suffix(".taken")).with_suffix(".taken").read_text()
                self._suffer(path.parent, where, fault)
                return fault
        return ""

    def _suffer(self, folder: Path, where: str, fault: str) -> None:
        if fault == "raise":
            raise RuntimeError(f"the {where} broke")
        if fault == "exit":
            raise SystemExit(f"the {where} gave up")
        if fault == "hang":
            time.sleep(WAIT_S)
        if fault == "fork":  # a child that does not end with the env and holds all that it had open
            if not (pid := os.fork()):
                signal.pause()
                os._exit(0)
            (folder / "child").write_text(str(pid))
        if fault == "die":
            os._exit(3)
        if fault == "wait":
            aside = folder / f"{where}.aside"
            aside.write_text(str(os.getpid()))
            aside.rename(folder / f"{where}.at")
            _wait_for(folder / f"{where}.go")
            (folder / f"{where}.go").unlink()


gymnasium.register(id="lab/Faulty-v0", entry_point=FaultyEnv, disable_env_checker=True, order_enforce=False)
