"""LIBERO's demonstrations, `<task>_demo.hdf5`: the official ones, and those that OpenVLA's script has replayed.

`data/demo_N/` holds `actions` [T, 7], `states` [T, S] (MuJoCo: time, then joints) and `obs/`: `agentview_rgb` and
`eye_in_hand_rgb` [T, H, W, 3], `ee_pos` [T, 3], `ee_ori` [T, 3] axis-angle, `gripper_states` [T, 2], `joint_states`
[T, 7]. Written by LIBERO's scripts/create_dataset.py (128 pixels, with attributes) and by OpenVLA's
experiments/robot/libero/regenerate_libero_dataset.py (256 pixels, without). They differ in what docs/demonstrations.md
tells: the official frames are those after the action.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.config import ReadConfig
from rlvla.dataset import DatasetError
from rlvla.demonstrations import Episode, Source, prepared, robosuite_gripper, see_before_acting

CONTROL_FREQ = 20.0
"""Env steps a second where the file does not say: what LIBERO's scripts/create_dataset.py records with."""
_STATE = ("ee_pos", "ee_ori", "gripper_states")
"""Concatenated to [T, 8], the proprio of OpenVLA-OFT (experiments/robot/libero/run_libero_eval.py)."""


def open_hdf5(path: Path, options: ReadConfig) -> Source:
    """Find the files and check that none is cut off; episodes are read when asked for.

    Args:
        path: an `.hdf5` file, or a folder that holds some at any depth.
        options: how to read.

    Raises:
        ModuleNotFoundError: h5py is not installed.
        DatasetError: there is no such file, or one is damaged; the message names it. Later, while reading: an episode
            is malformed.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.hdf5"))
    if not files:
        raise DatasetError(f"{path}: no .hdf5 file here, and no meta/info.json as in a LeRobot data set")
    rates: set[float] = set()
    num_episodes = 0
    for file in files:
        with _open(file) as handle:
            num_episodes += len(_demos(handle, file))
            rates.add(_control_freq(handle))
    if len(rates) > 1:
        raise DatasetError(f"{path}: files of different control_freq ({sorted(rates)}): read them one by one")
    fps = rates.pop()
    episodes = (episode for file in files for episode in _episodes(file, options, fps))
    return Source(
        robot="panda",
        fps=fps,
        num_episodes=num_episodes,
        episodes=prepared(episodes, filter_noops=options.drop_noops),
    )


def _open(file: Path) -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{file}: reading HDF5 needs h5py: make setup, or install rlvla[libero]") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:  # LIBERO-90 has been served with files cut off (LIBERO issue 76)
        raise DatasetError(f"{file}: {error}; download it again") from error


def _demos(handle: Any, file: Path) -> list[str]:
    """Names of the demonstrations in the order of their numbers."""
    if "data" not in handle:
        raise DatasetError(f"{file}: no group 'data': not a file of LIBERO's demonstrations")
    names = list(handle["data"])
    if wrong := [name for name in names if not re.fullmatch(r"demo_\d+", name)]:
        raise DatasetError(f"{file}: data/{wrong[0]} is not called demo_N")
    expected = handle["data"].attrs.get("num_demos", len(names))
    if not names or int(expected) != len(names):
        raise DatasetError(f"{file}: holds {len(names)} demonstrations, and says {expected}")
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _control_freq(handle: Any) -> float:
    env_args = json.loads(handle["data"].attrs.get("env_args", "{}"))
    return float(env_args.get("env_kwargs", {}).get("control_freq", CONTROL_FREQ))


def _instruction(handle: Any, file: Path) -> str:
    """In words: of `problem_info`, or of the file's name as LIBERO's benchmark makes it of the same."""
    problem = json.loads(handle["data"].attrs.get("problem_info", "{}"))
    if "language_instruction" in problem:
        # A string, or the list of its pieces (scripts/get_dataset_info.py joins them).
        return "".join(problem["language_instruction"]).strip().strip('"')
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", file.stem.removesuffix("_demo")).replace("_", " ")


def _episodes(file: Path, options: ReadConfig, fps: float) -> Iterator[Episode]:
    with _open(file) as handle:
        instruction = _instruction(handle, file)
        convention = str(handle["data"].attrs.get("macros_image_convention", "opengl"))
        for name in _demos(handle, file):
            where = f"{file}, {name}"
            demo = _Demo(handle["data"][name], where)
            turn = _turn(convention, options.rotate, where)
            cameras = options.cameras or ("agentview",)
            # robosuite calls the wrist camera robot0_eye_in_hand, LIBERO's files do without the robot
            keys = {camera: f"obs/{camera.removeprefix('robot0_')}_rgb" for camera in cameras}
            frames = {camera: turn(demo.array(key, 4)) for camera, key in keys.items()}
            state = np.concatenate([demo.array(f"obs/{key}", 2) for key in _STATE], axis=1).astype(np.float32)
            actions = robosuite_gripper(demo.array("actions", 2).astype(np.float32), options.gripper, where)
            episode = Episode(name=where, instruction=instruction, frames=frames, state=state, actions=actions, fps=fps)
            is_late = options.frames_follow_actions
            yield see_before_acting(episode) if (demo.is_late() if is_late is None else is_late) else episode


class _Demo:
    """The group of one demonstration."""

    def __init__(self, group: Any, where: str) -> None:
        self._group, self._where = group, where
        self._length = len(self.array("actions", 2))

    def array(self, key: str, num_axes: int) -> np.ndarray:
        """[T, ...]; raises DatasetError where it is missing, of another rank, or of another length than the actions."""
        if key not in self._group:
            there = ", ".join(sorted([*self._group, *(f"obs/{name}" for name in self._group.get("obs", ()))]))
            raise DatasetError(f"{self._where}: no {key}; there are {there}")
        values = self._group[key][()]
        if values.ndim != num_axes:
            raise DatasetError(f"{self._where}: {key} has shape {list(values.shape)}, need {num_axes} axes")
        if key != "actions" and len(values) != self._length:
            raise DatasetError(f"{self._where}: {len(values)} of {key} for {self._length} actions")
        return values

    def is_late(self) -> bool:
        """Whether frame t was seen after action t, told by the arm's joints.

        State t is that before action t in both kinds of file, and begins with the time and the 7 joints of the arm
        (robosuite puts the robot first). So joint reading t equals state t + 1 where frames are late, else state t.
        """
        joints, states = self.array("obs/joint_states", 2), self.array("states", 2)
        if len(states) < 2 or states.shape[1] < 8 or joints.shape[1] != 7:
            raise DatasetError(
                f"{self._where}: cannot tell from joint_states {list(joints.shape)} and states {list(states.shape)} "
                "whether frames follow their actions: set read.frames_follow_actions"
            )
        arm = states[1:, 1:8]
        return bool(np.abs(joints[:-1] - arm).mean() < np.abs(joints[1:] - arm).mean())


def _turn(convention: str, rotate: bool | None, where: str) -> Callable[[np.ndarray], np.ndarray]:
    """[T, H, W, 3] -> the same the way OpenVLA sees it: the upright picture, mirrored left to right.

    `opengl` frames begin with the bottom row, so that a turn by 180 degrees does it (OpenVLA's `get_libero_image`);
    `opencv` frames (robosuite's other IMAGE_CONVENTION) are upright already.
    """
    if rotate is not None:
        return (lambda frames: frames[:, ::-1, ::-1]) if rotate else (lambda frames: frames)
    if convention == "opengl":
        return lambda frames: frames[:, ::-1, ::-1]
    if convention == "opencv":
        return lambda frames: frames[:, :, ::-1]
    raise DatasetError(f"{where}: macros_image_convention is {convention!r}, need opengl or opencv: set read.rotate")
