"""How fast our LIBERO env is against the default `OffScreenRenderEnv`, on the same actions, in one run.

python scripts/benchmark_libero.py [--suite libero_object] [--task 0] [--json benchmark_libero.json]

- default: LIBERO's own env as its evaluation uses it, two cameras of 256 pixels in each env step;
- ours: chunks of 8 env steps, the frame that the policy looks at rendered once per chunk. With one camera as the
  policies of the paper use, with both, and each with reflections off.

Each alternates with the default in rounds, so that what else the machine does hits both; the result is the median over
rounds. After each round the states of both are compared bit for bit, and the frames where no option changes them. The
reset of an episode is timed apart. Exit status 1 when states or frames differ.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rlvla_envs.libero.camera import CAMERAS
from rlvla_envs.libero.env import SETTLE_ACTION, LiberoEnv
from rlvla_envs.libero.tasks import SUITES, LiberoTask, load_init_states

CHUNK_LENGTH = 8
"""Open-loop steps per decision of OpenVLA-OFT on LIBERO (`num_open_loop_steps`)."""
INIT_STATE_ID = 0
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ours_one_camera": {"cameras": CAMERAS[:1], "reflections": True},
    "ours_two_cameras": {"cameras": CAMERAS, "reflections": True},
    "ours_one_camera_no_reflections": {"cameras": CAMERAS[:1], "reflections": False},
    "ours_two_cameras_no_reflections": {"cameras": CAMERAS, "reflections": False},
}
HEADLINE = "ours_one_camera"
"""`env_vs_default`: one camera, as in the paper, and the official frame to the bit."""
PACKAGES = ("mujoco", "robosuite", "hf-libero", "numpy")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raises SystemExit naming the option that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="libero_object", help="of the task")
    parser.add_argument("--task", type=int, default=0, help="task id")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each kind")
    parser.add_argument("--chunks", type=int, default=6, help="chunks of 8 env steps in a round")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.chunks < 1:
        parser.error("--rounds and --chunks must be at least 1")
    return args


class Default:
    """LIBERO's own env, driven as OpenVLA-OFT's run_libero_eval.py drives it."""

    def __init__(self, task: LiberoTask) -> None:
        envs = importlib.import_module("libero.libero.envs")
        self._env = envs.OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=256, camera_widths=256)
        self._init_state = load_init_states(task)[INIT_STATE_ID]
        self._num_samplers = len(self._env.env.object_property_initializers)

    def reset(self) -> None:
        """An episode's start, settling included."""
        # LIBERO appends to this list in each reset, and so moves fixtures from one episode to the next under the same
        # seed. Ours meets the first episode's places each time.
        del self._env.env.object_property_initializers[self._num_samplers :]
        self._make_current()
        self._env.seed(0)
        self._env.reset()
        self._env.set_init_state(self._init_state)
        for _ in range(10):
            self.step(np.array(SETTLE_ACTION))

    def _make_current(self) -> None:
        """Robosuite draws with, and frees from, whatever GL context is current, be it that of another env."""
        self._env.sim._render_context_offscreen.gl_ctx.make_current()

    def step(self, action: np.ndarray) -> None:
        """One env step with two pictures."""
        self._make_current()
        self._obs = self._env.step(action.tolist())[0]

    def frames(self, num: int) -> np.ndarray:
        """The first cameras of the last step in OpenVLA's orientation."""
        return np.stack([self._obs[f"{camera}_image"][::-1, ::-1] for camera in CAMERAS[:num]])

    def state(self) -> np.ndarray:
        """Time, qpos and qvel."""
        return self._env.get_sim_state()

    def close(self) -> None:
        """Frees it."""
        self._make_current()
        self._env.close()


@dataclass(frozen=True, kw_only=True)
class Round:
    """The same actions on both sides."""

    default_s: float
    ours_s: float
    default_reset_s: float
    ours_reset_s: float
    same_states: bool
    same_frames: bool


def play(default: Default, ours: LiberoEnv, task_id: int, actions: np.ndarray) -> Round:
    """One episode's start and some chunks on each side.

    Args:
        default: steps with two pictures each.
        ours: one look per chunk.
        task_id: of both.
        actions: [chunks, K, 7].
    """
    times = [time.perf_counter()]
    default.reset()
    times.append(time.perf_counter())
    for action in actions.reshape(-1, actions.shape[-1]):
        default.step(action)
    times.append(time.perf_counter())
    ours.reset(options={"task_id": task_id, "init_state_id": INIT_STATE_ID})
    times.append(time.perf_counter())
    for chunk in actions:
        obs = ours.step_chunk(chunk)[0]
    times.append(time.perf_counter())
    default_reset_s, default_s, ours_reset_s, ours_s = np.diff(times).tolist()
    return Round(
        default_s=default_s,
        ours_s=ours_s,
        default_reset_s=default_reset_s,
        ours_reset_s=ours_reset_s,
        same_states=bool(np.array_equal(ours.robosuite.sim.get_state().flatten(), default.state())),
        same_frames=bool(np.array_equal(obs["images"], default.frames(len(ours.cameras)))),
    )


def measure(args: argparse.Namespace) -> dict[str, list[Round]]:
    """All rounds of each configuration, the first of each left out: it compiles the scene and warms up."""
    rounds: dict[str, list[Round]] = {}
    default: Default | None = None
    bar = tqdm(total=len(CONFIGURATIONS) * (args.rounds + 1), unit="round", dynamic_ncols=True)
    for name, options in CONFIGURATIONS.items():
        # The crop is the policy's own, and no part of the default env's frames.
        ours = LiberoEnv(args.suite, center_crop=False, **options)
        default = default or Default(ours.tasks[args.task])
        rounds[name] = []
        for seed in range(args.rounds + 1):
            # Small moves around the start: none may end the episode.
            moves = np.random.default_rng(seed).uniform(-0.3, 0.3, (args.chunks, CHUNK_LENGTH, 7))
            moves[..., 6] = -1
            rounds[name].append(play(default, ours, args.task, moves))
            bar.update()
        ours.close()
    if default:
        default.close()
    bar.close()
    return {name: values[1:] for name, values in rounds.items()}


def summarise(args: argparse.Namespace, rounds: dict[str, list[Round]]) -> dict[str, Any]:
    """The result as it is printed and written: medians over rounds, each ratio from rounds that alternated."""
    num_steps = args.chunks * CHUNK_LENGTH
    every = [value for values in rounds.values() for value in values]
    default_s = {name: statistics.median(value.default_s for value in values) for name, values in rounds.items()}
    ours_s = {name: statistics.median(value.ours_s for value in values) for name, values in rounds.items()}
    speeds = {"default": num_steps / statistics.median(value.default_s for value in every)}
    speeds |= {name: num_steps / seconds for name, seconds in ours_s.items()}
    ratios = {name: round(default_s[name] / ours_s[name], 2) for name in rounds}
    official = [value for name, values in rounds.items() if CONFIGURATIONS[name]["reflections"] for value in values]
    return {
        "suite": args.suite,
        "task_id": args.task,
        "chunk_length": CHUNK_LENGTH,
        "rounds": args.rounds,
        "env_steps_per_s": {name: round(value, 2) for name, value in speeds.items()},
        "vs_default": ratios,
        "env_vs_default": ratios[HEADLINE],
        "reset_s": {
            "default": round(statistics.median(value.default_reset_s for value in every), 3),
            "ours": round(statistics.median(value.ours_reset_s for value in every), 3),
        },
        "same_states": all(value.same_states for value in every),
        "same_frames": all(value.same_frames for value in official),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "gl": os.environ["MUJOCO_GL"]},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and the ratio."""
    args = parse(argv)
    result = summarise(args, measure(args))
    for name, speed in result["env_steps_per_s"].items():
        print(f"{name:34s} {speed:7.1f} env steps/s {result['vs_default'].get(name, 1):6.2f} x")
    print(f"reset and settling: default {result['reset_s']['default']} s, ours {result['reset_s']['ours']} s")
    print(f"same states: {result['same_states']}, same frames: {result['same_frames']}")
    print(f"env_vs_default {result['env_vs_default']}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(not (result["same_states"] and result["same_frames"]))


if __name__ == "__main__":
    sys.exit(main())
