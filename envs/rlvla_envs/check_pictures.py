"""What `check_env` asks of pictures and other arrays: native frames show what the images show, and all are kept."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from rlvla_envs.probe import BOX, NUM_STEPS, actions, look, require, require_value_error, start
from rlvla_envs.spec import resize

_BAD_BOXES = ((500, 0, 500, 1000), (600, 0, 400, 1000), (-1, 0, 500, 500), (0, 0, 500, 1001))
_WHOLE = (0, 0, 1000, 1000)
_TURNS = {
    "turned by 180 degrees": np.s_[::-1, ::-1],
    "upside down": np.s_[::-1],
    "mirrored": np.s_[:, ::-1],
    "with red and blue swapped": np.s_[:, :, ::-1],
}


def check_pictures(env: Any) -> None:
    """Native frames and zooms are of the right type and show the images' field of view."""
    obs = start(env, 0)
    num_images, height, width, _ = obs["images"].shape
    frames = env.native_frames()
    require(len(frames) == num_images, f"native_frames: {len(frames)} for {num_images} images")
    for index, frame in enumerate(frames):
        fits = frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[-1] == 3
        require(fits, f"native_frames[{index}]: {frame.dtype} {frame.shape}, not uint8 [H,W,3]")
        crop = env.zoom(index, BOX)
        require(
            crop.dtype == np.uint8 and crop.shape == (height, width, 3),
            f"zoom: {crop.dtype} {crop.shape}, not uint8 {(height, width, 3)}",
        )
        _check_view(obs["images"], index, frame, "native_frames")
        _check_view(obs["images"], index, env.zoom(index, _WHOLE), "zoom")
    for box in _BAD_BOXES:
        require_value_error(lambda box=box: env.zoom(0, box), f"zoom: the box {box}")
    require_value_error(lambda: env.zoom(num_images, (0, 0, 500, 500)), "zoom: an image out of range")


def _check_view(images: np.ndarray, index: int, frame: np.ndarray, what: str) -> None:
    """A box in an image means the same in its native frame; no other way to hold that shows the image much better."""
    small = resize(np.ascontiguousarray(frame), *images.shape[1:3]).astype(int)
    error = np.abs(small - images[index]).mean()
    others = {f"{name} beside images[{index}]": small[turn] - images[index] for name, turn in _TURNS.items()}
    others |= {f"what images[{i}] shows": small - images[i] for i in range(len(images)) if i != index}
    for name, difference in others.items():
        is_better = 2 * np.abs(difference).mean() < error
        require(not is_better, f"{what}: camera {index} is {name}: both have to show the same field of view")


def check_arrays(env: Any) -> None:
    """Each array that the env returns is the caller's: what comes later is not drawn into it."""
    moments = []
    obs = start(env, 0)
    for move in (actions(env, 1), actions(env, NUM_STEPS), None):
        moments.append(look(env, obs))
        obs = start(env, 0, int(env.init_state_ids(0, "train")[-1])) if move is None else _moved(env, move)
    for moment in moments:
        for name, array in moment.arrays.items():
            _require_kept(name, np.ascontiguousarray(array).tobytes() == moment.seen[name])
    for one, other in combinations(moments, 2):
        for name, array in one.arrays.items():
            is_shared = array.flags.writeable and np.shares_memory(array, other.arrays[name])
            _require_kept(name, not is_shared)


def _moved(env: Any, move: np.ndarray) -> Any:
    obs, _, terminated, truncated, info = env.step_chunk(move)
    return start(env, 0) if terminated or truncated or info["is_success"] else obs


def _require_kept(name: str, is_kept: bool) -> None:
    require(
        is_kept,
        f"{name}: one buffer is returned again and again: return a copy each time, or set flags.writeable = False",
    )
