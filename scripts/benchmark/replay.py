"""Episodes that end as a policy's do, whatever the policy says: recorded actions are executed in the place of its own.

A tiny policy solves no task of LIBERO, and then no episode would end before its horizon. So the scripted expert plays
each episode beforehand, without pictures, and the env executes what it did, chunk by chunk, while the policy looks,
thinks, zooms and samples every chunk for real. In a failure the expert finds that its gripper does not close, and tries
until the horizon. Simulator, decisions and their number are those of a policy of that success.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from official import OfficialLibero
from rlvla_envs.libero.env import SETTLE_ACTION, LiberoEnv
from rlvla_envs.libero.expert.motions import OPEN
from rlvla_envs.libero.expert.plan import LiberoExpert

OURS, OFFICIAL = "benchmark/ReplayedLibero-v0", "benchmark/ReplayedOfficialLibero-v0"
"""Gymnasium ids; `imports` names this module."""
GRIPPER = 6
"""Its dimension of an action."""


class Replaying(LiberoEnv):
    """Executes a recording in the place of the actions that it is given.

    Args:
        recording: file of `write`.
        kwargs: of the env.
    """

    def __init__(self, recording: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._recording = read(Path(recording))

    def step_chunk(self, actions: np.ndarray) -> tuple[Any, np.ndarray, bool, bool, dict[str, Any]]:
        """See `VLAEnv`; the robot stands still where the recording has ended."""
        chunk = np.tile(SETTLE_ACTION, (len(actions), 1))
        recorded = self._recording[self.task_id, self._init_state_id][self._num_env_steps :][: len(chunk)]
        chunk[: len(recorded)] = recorded
        return super().step_chunk(chunk)


class ReplayedLibero(Replaying):
    """Ours."""


class ReplayedOfficialLibero(Replaying, OfficialLibero):
    """LIBERO's own."""


gymnasium.register(OURS, entry_point="replay:ReplayedLibero", disable_env_checker=True, order_enforce=False)
gymnasium.register(OFFICIAL, entry_point="replay:ReplayedOfficialLibero", disable_env_checker=True, order_enforce=False)


class _Blind(LiberoEnv):
    """Draws nothing."""

    def _observe(self) -> Any:
        return None


def record(
    kwargs: Mapping[str, Any], episodes: Iterable[tuple[int, int]], *, fails: Iterable[bool]
) -> dict[tuple[int, int], np.ndarray]:
    """What the expert does, float32 [T, 7] by (task, initial state).

    Args:
        kwargs: of `LiberoEnv`.
        episodes: which; those of a task follow each other, else each compiles its scene.
        fails: of each, whether the gripper is to stay open.
    """
    env = _Blind(**kwargs)
    recording = {}
    for (task_id, init_state_id), is_failure in zip(episodes, fails, strict=True):
        env.reset(options={"task_id": task_id, "init_state_id": init_state_id})
        expert, actions, is_over = LiberoExpert(env.robosuite), [], False
        while not is_over:
            action = expert.step().action.astype(np.float32)
            if is_failure:
                action[GRIPPER] = OPEN
            actions.append(action)
            _, _, terminated, truncated, _ = env.step(action)
            is_over = terminated or truncated
        recording[task_id, init_state_id] = np.stack(actions)
    env.close()
    return recording


def write(file: Path, recording: Mapping[tuple[int, int], np.ndarray]) -> None:
    """Keep a recording in a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"{task_id}_{state}": actions for (task_id, state), actions in recording.items()}
    with file.open("wb") as stream:
        np.savez(stream, **arrays)


def read(file: Path) -> dict[tuple[int, int], np.ndarray]:
    """What `write` kept."""
    with np.load(file) as arrays:
        named = dict(arrays.items())
    return {(int(name.split("_")[0]), int(name.split("_")[1])): array for name, array in named.items()}
