"""A third party's env, in one file: grey pictures, few steps, and success when an action is high enough.

What tells one initial state from another is the proprio alone.

Registered by its import; nothing of rlvla knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from rlvla.types import Annotation, Decision, Timeline
from rlvla_envs.spec import VLAEnv, zoom_later


class Bandit(VLAEnv):
    """Success when the last action's first dimension is above 0.5: a quarter of [-1, 1].

    Args:
        length: of an episode, env steps.
        num_cameras: which all see the same.
    """

    suite = "bandit"
    task_names = ("push",)

    def __init__(self, length: int = 1, num_cameras: int = 1) -> None:
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            images=gymnasium.spaces.Box(0, 255, (num_cameras, 32, 32, 3), np.uint8),
            proprio=gymnasium.spaces.Box(-1, 1, (1,), np.float32),
            instruction=gymnasium.spaces.Text(20),
        )
        self._length, self._num_cameras = length, num_cameras
        self._success, self._num_steps, self._init_state_id = False, 0, 0

    def init_state_ids(self, task_id: int, split: str) -> range:
        if task_id != 0:
            raise ValueError(f"unknown task_id {task_id}")
        splits = {"train": range(1000), "evaluate": range(1000, 2000)}
        if split not in splits:
            raise ValueError(f"unknown split {split!r}")
        return splits[split]

    def max_env_steps(self, task_id: int) -> int:
        return self._length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        gymnasium.Env.reset(self, seed=seed)
        options = options or {}
        self.init_state_ids(options.get("task_id", 0), "train")
        self._init_state_id = options.get("init_state_id", int(self.np_random.integers(1000)))
        self._success, self._num_steps = False, 0
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> Any:
        self._num_steps += 1
        terminated = self._num_steps == self._length
        self._success = terminated and bool(action[0] > 0.5)
        return self._observe(), float(self._success), terminated, False, {"is_success": self._success}

    def native_frames(self) -> tuple[np.ndarray, ...]:
        return (np.full((32, 32, 3), 128, np.uint8),) * self._num_cameras

    def get_state(self) -> np.ndarray:
        return np.array([self._success, self._num_steps, self._init_state_id], np.float64)

    def set_state(self, state: np.ndarray) -> None:
        self._success, self._num_steps, self._init_state_id = bool(state[0]), int(state[1]), int(state[2])

    def _observe(self) -> dict[str, Any]:
        return {
            "images": np.stack(self.native_frames()),
            "proprio": np.array([self._init_state_id / 2000], np.float32),
            "instruction": "push",
        }


gymnasium.register(id="lab/Bandit-v0", entry_point="bandit:Bandit", disable_env_checker=True, order_enforce=False)


def play(
    env: Bandit, task_id: int, init_state_id: int, *, chunk_length: int, stride: int, rng: np.random.Generator
) -> list[Decision]:
    """Actions at random: a cold start that knows the markup and nothing of the task."""
    observation, _ = env.reset(options={"task_id": task_id, "init_state_id": init_state_id})
    return [
        Decision(
            instruction=observation["instruction"],
            images=tuple(observation["images"]),
            proprio=observation["proprio"],
            actions=rng.uniform(-1, 1, (chunk_length, 1)).astype(np.float32),
            zoom=zoom_later(env),
        )
    ]


def annotate(decisions: Sequence[Decision], index: int, *, timeline: Timeline, rng: np.random.Generator) -> Annotation:
    """The shortest thought."""
    return Annotation(thoughts=("try",))


def annotate_and_look(
    decisions: Sequence[Decision], index: int, *, timeline: Timeline, rng: np.random.Generator
) -> Annotation:
    """Every other time it looks closer first, into the last picture."""
    looks = ((len(decisions[index].images) - 1, (0, 0, 500, 500)),) * int(rng.integers(2))
    return Annotation(thoughts=("look",) * len(looks) + ("try",), looks=looks)
