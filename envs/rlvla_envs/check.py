"""The checks behind `rlvla_envs.spec.check_env`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rlvla_envs.spec import EnvContractError

_BAD_BOXES = ((500, 0, 500, 1000), (600, 0, 400, 1000), (-1, 0, 500, 500), (0, 0, 500, 1001))
_MAX_STEPS_TO_LIMIT = 100
"""Longer episodes are not run to their end: that would take minutes in some simulators."""
_NUM_STEPS = 4


def check_contract(env: Any) -> None:
    """Raises EnvContractError unless the env keeps the contract of `VLAEnv`."""
    _check_names(env)
    _check_spaces(env)
    for task_id in range(len(env.task_names)):
        _check_splits(env, task_id)
        _check_reset(env, task_id)
        _check_steps(env, task_id)
        _check_state(env, task_id)
        _check_limit(env, task_id)
    _check_pictures(env)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EnvContractError(message)


def _require_value_error(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise EnvContractError(f"{what} must raise ValueError")


def _check_names(env: Any) -> None:
    _require(isinstance(getattr(env, "suite", None), str) and env.suite != "", "suite: not a name")
    names = getattr(env, "task_names", None)
    _require(
        isinstance(names, tuple) and len(names) > 0 and all(isinstance(n, str) for n in names),
        f"task_names: {names!r} is not a non-empty tuple of str",
    )


def _check_spaces(env: Any) -> None:
    space = env.observation_space
    keys = {"images", "proprio", "instruction"}
    _require(isinstance(space, gymnasium.spaces.Dict), "observation_space: not a Dict")
    _require(set(space.keys()) == keys, f"observation_space: keys {set(space.keys())}, not {keys}")
    images, proprio = space["images"], space["proprio"]
    _require(images.dtype == np.uint8, f"images: dtype {images.dtype}, not uint8")
    _require(len(images.shape) == 4 and images.shape[-1] == 3, f"images: {images.shape} is not [N,H,W,3]")
    _require(proprio.dtype == np.float32, f"proprio: dtype {proprio.dtype}, not float32")
    _require(len(proprio.shape) == 1, f"proprio: {proprio.shape} is not [P]")
    _require(isinstance(space["instruction"], gymnasium.spaces.Text), "instruction: not a Text")
    action = env.action_space
    _require(isinstance(action, gymnasium.spaces.Box), "action_space: not a Box")
    _require(action.dtype == np.float32 and len(action.shape) == 1, "action_space: not float32 [A]")


def _check_splits(env: Any, task_id: int) -> None:
    train, evaluate = (env.init_state_ids(task_id, split) for split in ("train", "evaluate"))
    _require(len(train) > 0 and len(evaluate) > 0, f"task {task_id}: a split is empty")
    shared = set(train) & set(evaluate)
    _require(not shared, f"task {task_id}: train and evaluate share {sorted(shared)[:5]}")
    _require_value_error(lambda: env.init_state_ids(task_id, "no such split"), "an unknown split")


def _check_obs(env: Any, obs: Any) -> None:
    for key, space in env.observation_space.items():
        _require(key in obs, f"obs: no {key!r}")
        value = obs[key]
        detail = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)
        _require(space.contains(value), f"obs[{key!r}]: {detail} is not in {space}")


def _start(env: Any, task_id: int, seed: int | None = None) -> Any:
    init_state_id = env.init_state_ids(task_id, "train")[0]
    options = {"task_id": task_id, "init_state_id": init_state_id}
    return env.reset(seed=seed, options=options)[0]


def _check_reset(env: Any, task_id: int) -> None:
    first = _start(env, task_id, seed=0)
    _check_obs(env, first)
    state = env.get_state()
    _require(state.dtype == np.float64 and state.ndim == 1, f"get_state: {state.dtype} {state.shape}")
    env.step(_actions(env, 1)[0])
    again = _start(env, task_id, seed=1)
    where = f"task {task_id}: two resets to the same ids differ"
    _require(np.array_equal(env.get_state(), state), f"{where} in the state")
    for key in ("images", "proprio"):
        _require(np.array_equal(first[key], again[key]), f"{where} in {key}")
    _require(first["instruction"] == again["instruction"], f"{where} in the instruction")
    drawn = []
    for _ in range(2):
        _check_obs(env, env.reset(seed=0)[0])
        drawn.append(env.get_state())
    _require(np.array_equal(*drawn), "reset: the same seed draws different initial states")
    num_tasks = len(env.task_names)
    _require_value_error(lambda: env.reset(options={"task_id": num_tasks}), "an unknown task_id")


def _actions(env: Any, num: int) -> np.ndarray:
    """[num, A] reproducible actions; the middle of the box where it is unbounded."""
    space = env.action_space
    low, high = (np.clip(limit, -1, 1) for limit in (space.low, space.high))
    draw = np.random.default_rng(0).uniform(0.4, 0.6, (num, *space.shape))
    return (low + draw * (high - low)).astype(np.float32)


def _check_steps(env: Any, task_id: int) -> None:
    """Single steps have the right types, and a chunk does what single steps do."""
    actions = _actions(env, _NUM_STEPS)
    _start(env, task_id)
    rewards = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        _check_obs(env, obs)
        _require(isinstance(info.get("is_success"), bool | np.bool_), "info['is_success']: not a bool")
        _require(
            reward == float(info["is_success"]),
            f"reward {reward} with is_success {info['is_success']}",
        )
        _require(not (terminated and truncated), "a step is both terminated and truncated")
        rewards.append(reward)
        if terminated or truncated:
            break
    state = env.get_state()
    _start(env, task_id)
    chunk_obs, chunk_rewards, *ended, _ = env.step_chunk(actions)
    _require(
        np.array_equal(chunk_rewards, rewards),
        f"step_chunk: rewards {chunk_rewards}, not {rewards}",
    )
    _require(ended == [terminated, truncated], f"step_chunk: ended {ended} unlike single steps")
    same = np.array_equal(env.get_state(), state)
    _require(same, "step_chunk: another state than single steps")
    _require(np.array_equal(chunk_obs["images"], obs["images"]), "step_chunk: other images")


def _check_state(env: Any, task_id: int) -> None:
    """Saving, going on, and restoring in the midst of an episode replays bit for bit."""
    first, rest = np.split(_actions(env, _NUM_STEPS), [1])
    _start(env, task_id)
    _, _, terminated, truncated, _ = env.step_chunk(first)
    if terminated or truncated:
        return
    saved = env.get_state().copy()
    obs = env.step_chunk(rest)[0]
    state = env.get_state()
    _start(env, task_id)
    env.set_state(saved)
    restored = np.array_equal(env.get_state(), saved)
    _require(restored, "set_state: get_state does not return what was set")
    again = env.step_chunk(rest)[0]
    _require(np.array_equal(env.get_state(), state), "set_state: the replay differs in the state")
    _require(np.array_equal(again["images"], obs["images"]), "set_state: the replay looks different")


def _check_limit(env: Any, task_id: int) -> None:
    limit = env.max_env_steps(task_id)
    _require(isinstance(limit, int) and limit > 0, f"max_env_steps: {limit!r} is not a count")
    if limit > _MAX_STEPS_TO_LIMIT:
        return
    _start(env, task_id)
    _, rewards, terminated, truncated, _ = env.step_chunk(_actions(env, limit + 1))
    ended = terminated or (truncated and len(rewards) == limit)
    _require(ended, f"task {task_id}: not truncated after max_env_steps = {limit} env steps")


def _check_pictures(env: Any) -> None:
    obs = _start(env, 0)
    num_images, height, width, _ = obs["images"].shape
    frames = env.native_frames()
    _require(len(frames) == num_images, f"native_frames: {len(frames)} for {num_images} images")
    for index, frame in enumerate(frames):
        fits = frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[-1] == 3
        _require(fits, f"native_frames[{index}]: {frame.dtype} {frame.shape}")
        crop = env.zoom(index, (250, 250, 750, 750))
        _require(
            crop.dtype == np.uint8 and crop.shape == (height, width, 3),
            f"zoom: {crop.dtype} {crop.shape}, not uint8 {(height, width, 3)}",
        )
    for box in _BAD_BOXES:
        _require_value_error(lambda box=box: env.zoom(0, box), f"zoom({box})")
    _require_value_error(lambda: env.zoom(num_images, (0, 0, 500, 500)), "an image out of range")
