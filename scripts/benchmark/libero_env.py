"""How fast our LIBERO env is against the default `OffScreenRenderEnv`, on the same actions, in one run.

python scripts/benchmark/libero_env.py [--suite libero_object] [--task 0] [--output libero_benchmark.json]

- default: LIBERO's own env as its evaluation uses it, two cameras of 256 pixels in each env step;
- ours: chunks of 8 env steps, the frame that the policy looks at rendered once per chunk. With one camera as the
  policies of the paper use, with both, and with one and reflections off.

Each alternates with the default in rounds, so that what else the machine does hits both; the result is the median over
rounds. After each round the states of both are compared bit for bit, and the frames where no option changes them. The
reset of an episode is timed apart. Exit status 1 when states or frames differ.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

from measuring import measure, table, write_result
from official import Official
from rlvla_envs.libero.camera import CAMERAS
from rlvla_envs.libero.env import LiberoEnv
from rlvla_envs.libero.tasks import Suite

CHUNK_LENGTH = 8
"""Open-loop steps per decision of OpenVLA-OFT on LIBERO (`num_open_loop_steps`)."""
INIT_STATE_ID = 0
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ours_one_camera": {"cameras": CAMERAS[:1], "reflections": True},
    "ours_two_cameras": {"cameras": CAMERAS, "reflections": True},
    "ours_one_camera_no_reflections": {"cameras": CAMERAS[:1], "reflections": False},
}
HEADLINE = "ours_one_camera"
"""`env_vs_default`: one camera, as in the paper, and the official frame to the bit."""


def main(
    *, suite: Suite = "libero_object", task: int = 0, rounds: int = 3, chunks: int = 6, output: Path | None = None
) -> int:
    """Measure, print a table and the ratio.

    Args:
        suite: of the task.
        task: its id.
        rounds: measured, of each kind; one before them compiles the scene and warms up.
        chunks: of 8 env steps, in a round.
        output: also write the result here, as JSON.
    """
    if rounds < 1 or chunks < 1:
        raise SystemExit("--rounds and --chunks must be at least 1")
    measured: dict[str, list[Round]] = {}
    default: Official | None = None
    for name, options in CONFIGURATIONS.items():
        # The crop is the policy's own, and no part of the default env's frames.
        ours = LiberoEnv(suite, center_crop=False, **options)
        default = default or Official(ours.tasks[task])
        alternate = partial(play, default, ours, task, chunks)
        measured[name] = measure(name, rounds, alternate)
        ours.close()
    if default:
        default.close()
    result = summarise(measured, chunks)
    speeds, ratios = result["env_steps_per_s"], result["vs_default"]
    print(table([("", "env steps/s", "x"), *((name, speed, ratios.get(name, 1)) for name, speed in speeds.items())]))
    print(f"reset and settling: default {result['reset_s']['default']} s, ours {result['reset_s']['ours']} s")
    print(f"same states: {result['same_states']}, same frames: {result['same_frames']}")
    print(f"env_vs_default {result['env_vs_default']}")
    facts = {"suite": suite, "task_id": task, "chunk_length": CHUNK_LENGTH, "rounds": rounds}
    write_result({**facts, **result, "gl": os.environ["MUJOCO_GL"]}, output)
    return int(not (result["same_states"] and result["same_frames"]))


def summarise(rounds: Mapping[str, Sequence[Round]], chunks: int) -> dict[str, Any]:
    """Medians over rounds, each ratio from rounds that alternated."""
    every = [one for values in rounds.values() for one in values]

    def middle(key: str, values: Sequence[Round] = every) -> float:
        return median(one[key] for one in values)

    seconds = {"default": middle("default")} | {name: middle("ours", values) for name, values in rounds.items()}
    ratios = {name: round(middle("default", values) / seconds[name], 2) for name, values in rounds.items()}
    official = [one for name, values in rounds.items() if CONFIGURATIONS[name]["reflections"] for one in values]
    return {
        "env_steps_per_s": {name: round(chunks * CHUNK_LENGTH / value, 2) for name, value in seconds.items()},
        "vs_default": ratios,
        "env_vs_default": ratios[HEADLINE],
        "reset_s": {name: round(middle(f"{name}_reset"), 3) for name in ("default", "ours")},
        "same_states": all(one["same_states"] for one in every),
        "same_frames": all(one["same_frames"] for one in official),
    }


Round = dict[str, Any]
"""Seconds `default`, `ours`, `default_reset` and `ours_reset`, and whether `same_states` and `same_frames`."""


def play(default: Official, ours: LiberoEnv, task_id: int, chunks: int, seed: int) -> Round:
    """One episode's start and some chunks on each side, of small moves around the start: none may end the episode."""
    actions = np.random.default_rng(seed).uniform(-0.3, 0.3, (chunks, CHUNK_LENGTH, 7))
    actions[..., 6] = -1
    times = [time.perf_counter()]
    default.reset(INIT_STATE_ID)
    default.settle()
    times.append(time.perf_counter())
    for action in actions.reshape(-1, actions.shape[-1]):
        default.step(action)
    times.append(time.perf_counter())
    ours.reset(options={"task_id": task_id, "init_state_id": INIT_STATE_ID})
    times.append(time.perf_counter())
    for chunk in actions:
        obs = ours.step_chunk(chunk)[0]
    times.append(time.perf_counter())
    names = ("default_reset", "default", "ours_reset", "ours")
    return dict(zip(names, np.diff(times).tolist(), strict=True)) | {
        "same_states": bool(np.array_equal(ours.robosuite.sim.get_state().flatten(), default.state())),
        "same_frames": bool(np.array_equal(obs["images"], default.frames(ours.cameras))),
    }


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
