"""LIBERO's suites: tasks, horizons, instructions, official initial states and how we split them."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from rlvla_envs.libero.assets import package_folder
from rlvla_envs.spec import load_manifest

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
Suite: TypeAlias = Literal[*SUITES]  # pyright: ignore[reportInvalidTypeForm]
HORIZONS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Env steps after settling: `max_steps` of OpenVLA-OFT's experiments/robot/libero/run_libero_eval.py, chosen there
above the longest training demonstration of each suite."""
NUM_INIT_STATES = 50
"""Official initial states of each task (LIBERO's init_files, all 130 read), each one trial of the official protocol."""
_LOADING = threading.Lock()
OFFICIAL = "official"
"""Split of all official states: what papers report. It overlaps "train" on purpose, so it is no split of a manifest."""

FIXTURES = {
    "first": "fixtures stand where the first official episode of each task finds them, in all of its episodes, as in "
    "SimpleVLA-RL's evaluation; OpenVLA-OFT's script moves them between episodes (env.kwargs.fixtures: episode)",
    "episode": "fixtures stand where OpenVLA-OFT's script finds them in the episode of the same initial state",
}
"""Where cabinets and stoves stand, which initial states leave open, and what a result on official states says of it."""


@dataclass(frozen=True, kw_only=True)
class LiberoTask:
    """One task, as LIBERO's benchmark lists it."""

    name: str
    instruction: str
    bddl_file: Path
    """Scene and goal."""
    init_file: Path
    """The official initial states, see `load_init_states`."""


def load_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """The tasks of a suite in LIBERO's order, which is that of the official task ids.

    Call it after `import_libero`.

    Raises:
        ValueError: an unknown suite.
    """
    check_suite(suite)
    package = package_folder()
    benchmark = importlib.import_module("libero.libero.benchmark")
    return tuple(
        LiberoTask(
            name=task.name,
            instruction=task.language,
            bddl_file=package / "bddl_files" / task.problem_folder / task.bddl_file,
            init_file=package / "init_files" / task.problem_folder / task.init_states_file,
        )
        for task in benchmark.task_maps[suite].values()
    )


def load_splits(suite: str) -> dict[str, range]:
    """Initial state ids by split, the same for each task: those of the manifest, and "official".

    Raises:
        ValueError: an unknown suite.
    """
    check_suite(suite)
    return {**load_manifest(suite), OFFICIAL: range(NUM_INIT_STATES)}


def load_init_states(task: LiberoTask) -> np.ndarray:
    """The official initial states, float64 [50, 1 + nq + nv]: time, then MuJoCo's qpos and qvel.

    Raises:
        ValueError: the file holds something else.
    """
    import torch
    from numpy._core import multiarray

    # The files pickle a plain NumPy array under NumPy 1's module name; nothing else may be built from them.
    allowed = [
        (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Float64DType,
    ]
    # The list is torch's own, hence of all threads: one that leaves would take it from another.
    with _LOADING, torch.serialization.safe_globals(allowed):
        states = torch.load(task.init_file, weights_only=True)
    if not isinstance(states, np.ndarray) or states.ndim != 2 or len(states) != NUM_INIT_STATES:
        what = f"{type(states).__name__} {getattr(states, 'shape', '')}"
        raise ValueError(f"{task.init_file}: {what}, not {NUM_INIT_STATES} initial states; reinstall hf-libero")
    return states


def check_suite(suite: str) -> None:
    """Raises ValueError unless LIBERO has this suite."""
    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
