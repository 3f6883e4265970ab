"""What the checks of an env have in common: starting, looking, comparing, and saying what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rlvla_envs.spec import EnvContractError

BOX = (250, 250, 750, 750)
"""To zoom into."""
NUM_STEPS = 4
"""Of a chunk that is played to see what follows."""


def arrays(env: Any, obs: Any) -> dict[str, np.ndarray]:
    """The env's own arrays of what is seen now, of which `obs` is the observation, by their names in messages."""
    frames = {f"native_frames[{i}]": frame for i, frame in enumerate(env.native_frames())}
    return {"images": obs["images"], "proprio": obs["proprio"], **frames, "zoom": env.zoom(0, BOX)}


def as_bytes(seen: dict[str, np.ndarray]) -> dict[str, bytes]:
    """What arrays hold now."""
    return {name: np.ascontiguousarray(array).tobytes() for name, array in seen.items()}


def look(env: Any, obs: Any) -> dict[str, bytes]:
    """All that is seen now, as it is now: equal to another look where nothing tells the two moments apart."""
    return as_bytes(arrays(env, obs)) | {"the instruction": obs["instruction"].encode()}


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of what differs between two looks."""
    return [name for name in one if one[name] != other[name]]


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
