"""Checks of what an env starts from: seeds, ids, saved states, another env beside it, another process."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from itertools import combinations
from typing import Any

import numpy as np
from gymnasium.envs.registration import load_env_creator

from rlvla_envs.probe import NUM_STEPS, actions, differences, look, require, start

_NUM_SEEDS = 16
_MAX_STEPS = 100
"""That two states which look alike are followed for."""
_NUM_STATES = 4
"""Of each split that are compared with each other."""
_OTHER_PROCESS = """
import importlib, os, pickle, sys
module, name, kwargs = pickle.load(sys.stdin.buffer)
from rlvla_envs.check_states import fingerprint
print(fingerprint(getattr(importlib.import_module(module), name)(**kwargs)), flush=True)
os._exit(0)
"""
"""Ends without what the simulator says or does at its end: some print, some crash."""
_PUT_BACK = "put back all that the future and the pictures depend on"


def check_seeds(env: Any) -> None:
    """The seed, and nothing else, draws what `options` leaves out."""
    drawn: dict[int, bytes] = {}
    for seed in (0, 0, 1, 0, *range(2, _NUM_SEEDS)):
        if seed > 1 and len(set(drawn.values())) > 1:
            return
        env.reset(seed=seed)
        state = env.get_state().tobytes()
        require(
            drawn.setdefault(seed, state) == state,
            f"reset: the same seed ({seed}) draws different initial states: draw from self.np_random, which "
            "super().reset(seed=seed) seeds",
        )
    require(
        len(set(drawn.values())) > 1 or len(env.init_state_ids(0, "train")) == 1,
        f"reset: {_NUM_SEEDS} seeds draw one and the same initial state: draw the init_state_id that `options` leaves "
        "out from self.np_random",
    )


def check_states_differ(env: Any, task_id: int) -> None:
    """`init_state_id` places something, and what is held out is not what is trained on."""
    train, evaluate = (_some(env.init_state_ids(task_id, split)) for split in ("train", "evaluate"))
    looks = {id_: look(env, start(env, task_id, id_)) for id_ in (*train, *evaluate)}
    alike = [
        (one, other)
        for one, other in combinations(sorted(looks), 2)
        if looks[one] == looks[other] and _goes_on_alike(env, (task_id, one), (task_id, other))
    ]
    first = next(iter(looks))
    num_like_first = 1 + sum(first in pair for pair in alike)
    require(
        num_like_first < len(looks),
        f"reset: init_state_id does nothing: states {sorted(looks)} of task {task_id} look alike and go on alike; make "
        "the state of options['init_state_id']",
    )
    for pair in alike:
        trained, held_out = sorted(pair, key=evaluate.__contains__)
        require(
            (trained in evaluate) == (held_out in evaluate),
            f"init_state_ids: state {held_out} of evaluate is state {trained} of train under another id "
            f"(task {task_id}): hold states out that differ",
        )


def check_tasks_differ(env: Any) -> None:
    """`task_id` chooses something."""
    first = look(env, start(env, 0))
    for task_id in range(1, len(env.task_names)):
        is_alike = look(env, start(env, task_id)) == first
        require(
            not (is_alike and _goes_on_alike(env, (0, None), (task_id, None))),
            f"reset: task_id does nothing: tasks 0 and {task_id} look alike, go on alike, and have the same "
            "instruction; start the task of options['task_id']",
        )


def check_state(env: Any, task_id: int) -> None:
    """Saving, going on, and restoring in the midst of an episode replays bit for bit, from wherever the env is."""
    elsewhere = [(task_id, int(env.init_state_ids(task_id, "train")[-1]))]
    if task_id == 0 and len(env.task_names) > 1:
        elsewhere.append((1, int(env.init_state_ids(1, "train")[0])))
    for place in elsewhere:
        _check_restoring(env, task_id, place)


def _check_restoring(env: Any, task_id: int, elsewhere: tuple[int, int]) -> None:
    first, rest = np.split(actions(env, NUM_STEPS), [1])
    start(env, task_id)
    obs, _, terminated, truncated, info = env.step_chunk(first)
    if terminated or truncated or info["is_success"]:
        return
    saved = env.get_state()
    kept = saved.copy()
    before = look(env, obs)
    require(
        np.array_equal(env.get_state(), kept),
        "zoom or native_frames: looking changes the state; leave it as it is, or restore it",
    )
    after = env.step_chunk(rest)[0]
    state = np.array(env.get_state())
    there = look(env, after)
    require(np.array_equal(saved, kept), "get_state: its array changes when the env goes on; return a copy")
    start(env, *elsewhere)
    env.set_state(saved)
    restored = np.array_equal(env.get_state(), kept)
    require(restored, "set_state: get_state does not return what was set")
    differ = [name for name in differences(look(env, obs), before) if name not in ("images", "proprio")]
    require(not differ, f"set_state: {', '.join(differ)} differ from when the state was saved; {_PUT_BACK}")
    again = env.step_chunk(rest)[0]
    require(np.array_equal(env.get_state(), state), f"set_state: the replay differs in the state; {_PUT_BACK}")
    differ = differences(look(env, again), there)
    require(not differ, f"set_state: the replay differs in {', '.join(differ)}; {_PUT_BACK}")
    require(np.array_equal(saved, kept), "set_state: writes into the array that it was given; take a copy")


def check_apart(env: Any, twin: Any) -> None:
    """Two envs in one process, as rollouts have them: the ids fix the state in both, and none moves the other."""
    ids = env.init_state_ids(0, "train")
    before = look(env, start(env, 0, int(ids[0])))
    state = np.array(env.get_state())
    start(twin, 0, int(ids[-1]))
    twin.step_chunk(actions(twin, NUM_STEPS))
    moved = not np.array_equal(env.get_state(), state)
    require(
        not moved, "reset: another env of the same class moves this one: keep the state in the env, not in its class"
    )
    differ = differences(look(twin, start(twin, 0, int(ids[0]))), before)
    require(not differ, f"reset: the same ids give two envs different states, as {', '.join(differ)} show")
    require(np.array_equal(twin.get_state(), state), "reset: the same ids give two envs different states, by get_state")


def check_other_process(env: Any) -> None:
    """The ids fix the state in another process, too: members of one group are played in several.

    Not looked at where another process cannot make the env alike: of a class in a script or in a function, or with an
    argument that cannot be sent.
    """
    entry_point = env.spec.entry_point
    make: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    name = getattr(make, "__qualname__", "")
    if not name.isidentifier() or make.__module__ == "__main__":
        return
    try:
        told = pickle.dumps((make.__module__, name, dict(env.spec.kwargs)))
    except (pickle.PicklingError, AttributeError, TypeError):
        return
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS],
        input=told,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2",
        },
        capture_output=True,
        check=False,
    )
    error = done.stderr.decode(errors="replace").strip()[-2000:]
    require(done.returncode == 0, f"the constructor or reset fails in a process of its own: {error}")
    require(
        done.stdout.decode().split()[-1] == fingerprint(env),
        "reset: the same ids give another state in another process: hash() of a text differs between processes, and so "
        "may the order of a set; derive the state from the ids alone (zlib.crc32 of a name)",
    )


def fingerprint(env: Any) -> str:
    """Of what the first train state of the first task is, pictures left out."""
    observation = start(env, 0)
    parts = (np.array(env.get_state()).tobytes(), observation["proprio"].tobytes(), observation["instruction"].encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _some(ids: Any) -> list[int]:
    """Up to `_NUM_STATES`, from the first to the last."""
    return sorted({int(ids[round(place)]) for place in np.linspace(0, len(ids) - 1, _NUM_STATES)})


def _goes_on_alike(env: Any, *places: tuple[int, int | None]) -> bool:
    """Whether the same actions lead to the same from two starts; the state itself may hold their ids."""
    seen = []
    for place in places:
        start(env, *place)
        seen.append(look(env, env.step_chunk(actions(env, min(env.max_env_steps(place[0]), _MAX_STEPS)))[0]))
    return seen[0] == seen[1]
