"""An env under check: how `rlvla_envs.check` starts it, moves it, looks at it, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlvla_envs.spec import EnvContractError

BOX = (250, 250, 750, 750)
"""To zoom into."""
NUM_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Look:
    """All that can be seen at one moment; equal to another where nothing tells them apart."""

    instruction: str
    arrays: dict[str, np.ndarray]
    """By the name that a message gives them; the env's own arrays."""
    seen: dict[str, bytes]
    """The same, as they were then."""

    def differences(self, other: Look) -> list[str]:
        """Names of what differs."""
        names = [name for name in self.seen if self.seen[name] != other.seen[name]]
        return names + ["the instruction"] * (self.instruction != other.instruction)


def look(env: Any, obs: Any) -> Look:
    """What is seen now, of which `obs` is the observation."""
    arrays = {name: obs[name] for name in ("images", "proprio")}
    arrays |= {f"native_frames[{i}]": frame for i, frame in enumerate(env.native_frames())}
    arrays["zoom"] = env.zoom(0, BOX)
    return Look(
        instruction=obs["instruction"],
        arrays=arrays,
        seen={name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()},
    )


def start(env: Any, task_id: int, init_state_id: int | None = None, seed: int | None = None) -> Any:
    """The observation of a reset, by default to the first train state."""
    if init_state_id is None:
        init_state_id = int(env.init_state_ids(task_id, "train")[0])
    return env.reset(seed=seed, options={"task_id": task_id, "init_state_id": init_state_id})[0]


def actions(env: Any, num: int) -> np.ndarray:
    """[num, A] reproducible actions; the middle of the box where it is unbounded."""
    space = env.action_space
    low, high = (np.clip(limit, -1, 1) for limit in (space.low, space.high))
    draw = np.random.default_rng(0).uniform(0.4, 0.6, (num, *space.shape))
    return (low + draw * (high - low)).astype(np.float32)


def require(condition: bool, message: str) -> None:
    """Raises EnvContractError with the message, unless the condition holds."""
    if not condition:
        raise EnvContractError(message)


def require_value_error(call: Callable[[], object], what: str) -> None:
    """Raises EnvContractError unless the call raises ValueError."""
    try:
        call()
    except ValueError:
        return
    raise EnvContractError(f"{what} must raise ValueError")
