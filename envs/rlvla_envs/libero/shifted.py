"""Initial states of LIBERO-Object beyond the official ones: the same scenes, their target and basket moved a little.

The 50 official states of a task differ by millimetres: who has learned where things are need not look (a policy that is
shown black pictures solves most of them). With centimetres it has to.
"""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from rlvla_envs.libero.tasks import load_splits

SUITE = "libero_object"
MAX_SHIFT = 0.035
"""m, in x and in y: beyond it objects stand in each other too often."""
FIRST_EVALUATE_ID = 1000
"""Ids from here on begin with the official states that we evaluate on, those below with those that we train on."""
CLEARANCE = 0.09
"""Between the middles of the target and of the objects around, m, where the scene leaves it."""
_NUM_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Which shifted states there are: those that the scripted expert solves."""

    shift: float
    splits: Mapping[str, Mapping[str, tuple[int, ...]]]
    """Task name -> split -> ids."""

    def of(self, task: str) -> Mapping[str, tuple[int, ...]]:
        """Split -> ids of a task; raises ValueError where nobody has looked at it."""
        if task not in self.splits:
            raise ValueError(f"{manifest_name(self.shift)} has no states of {task}: {_make(self.shift)} --tasks {task}")
        return self.splits[task]


def load_shifted(suite: str, shift: float) -> Shifted:
    """The manifest of a shift.

    Raises:
        ValueError: there are no shifted states of this suite, or none by so much; the message says what to do.
    """
    check_shift(suite, shift)
    file = resources.files("rlvla_envs").joinpath(f"manifests/{manifest_name(shift)}")
    if not file.is_file():
        raise ValueError(f"shift {shift}: there is no {file}: {_make(shift)}")
    return Shifted(shift=shift, splits=_splits(json.loads(file.read_text())["solved"]))


def _splits(solved: Mapping[str, list[int]]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        task: {
            "train": tuple(i for i in ids if i < FIRST_EVALUATE_ID),
            "evaluate": tuple(i for i in ids if i >= FIRST_EVALUATE_ID),
        }
        for task, ids in solved.items()
    }


def check_shift(suite: str, shift: float) -> None:
    """Raises ValueError unless states of this suite can be shifted by so much."""
    if suite != SUITE:
        raise ValueError(f"shift {shift} is for {SUITE}, not {suite}")
    if not 0 < shift <= MAX_SHIFT or abs(1000 * shift - round(1000 * shift)) > 1e-6:
        raise ValueError(f"shift {shift} is not a whole number of millimetres up to {MAX_SHIFT} m")


def manifest_name(shift: float) -> str:
    """Of the file with the states of a shift, in m."""
    return f"{SUITE}_shifted_{round(1000 * shift)}mm.json"


def _make(shift: float) -> str:
    return f"make it with python scripts/check_libero_shifted.py --shift {shift}"


def base_state(init_state_id: int) -> int:
    """The official state that a shifted one begins with."""
    split = "train" if init_state_id < FIRST_EVALUATE_ID else "evaluate"
    official = load_splits(SUITE)[split]
    return official[init_state_id % len(official)]


def shift_objects(robosuite: Any, task: str, init_state: np.ndarray, shift: float, init_state_id: int) -> np.ndarray:
    """An official initial state with its target and its basket moved.

    Args:
        robosuite: the task's env, in any state.
        task: its name, which with the id seeds by how much.
        init_state: float64 [1 + nq + nv], see `load_init_states`.
        shift: most, in x and in y, m.
        init_state_id: of the shifted state.

    Returns:
        float64 [1 + nq + nv], the same bits for the same arguments, whatever the env is doing.
    """
    rng = np.random.default_rng((zlib.crc32(f"{SUITE}/{task}".encode()), init_state_id))
    model, state = robosuite.sim.model._model, init_state.copy()
    _, target, region = robosuite.parsed_problem["goal_state"][0]
    basket = region.removesuffix("_contain_region")
    places = {name: 1 + _address(model, robosuite, name) for name in robosuite.objects_dict}
    others = np.array([state[at : at + 2] for name, at in places.items() if name not in (target, basket)])
    for name in (target, basket):
        at = places[name]
        moved = state[at : at + 2] + rng.uniform(-shift, shift, (_NUM_DRAWS, 2))
        gaps = np.linalg.norm(moved[:, None] - others, axis=-1).min(axis=1)
        # The first draw that is clear of the others, or the one that is furthest from them.
        state[at : at + 2] = moved[0] if name == basket else moved[np.argmax(np.minimum(gaps, CLEARANCE))]
    return state


def _address(model: Any, robosuite: Any, name: str) -> int:
    """Of an object's position in qpos."""
    return int(model.jnt_qposadr[model.body_jntadr[robosuite.obj_body_id[name]]])
