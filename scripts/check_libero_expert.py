"""How often LIBERO's scripted experts succeed, task by task.

    python scripts/check_libero_expert.py --suites libero_object libero_spatial --num-states 10
    python scripts/check_libero_expert.py --suites libero_object libero_spatial --first-state 40 --num-states 5
    python scripts/check_libero_expert.py --suites libero_90 --tasks 3 17 --num-states 2 --verbose

Official horizons, settle steps and initial states; success is LIBERO's own check. Nothing is rendered. Every trial is
written at once, so that a run that was stopped goes on where it was; delete the JSON after a change of the expert.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rlvla.run.metrics import wilson_interval
from rlvla_envs.libero import SETTLE_ACTION
from rlvla_envs.libero_assets import find_assets, import_libero
from rlvla_envs.libero_expert import LiberoExpert
from rlvla_envs.libero_sim import TaskSim
from rlvla_envs.libero_tasks import HORIZONS, NUM_INIT_STATES, SUITES, load_init_states, load_splits, load_tasks

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SETTLE_STEPS = 10
"""`num_steps_wait` of OpenVLA-OFT's run_libero_eval.py."""
NUM_TUNED_STATES = 5
"""The experts were tuned on states 0 to 4 of each task."""
PACKAGES = ("hf-libero", "robosuite", "mujoco", "numpy")
"""Their versions move the results."""

Trials = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""Suite, task name, initial state id -> `success` and `env_steps`."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), metavar="SUITE")
    parser.add_argument("--tasks", nargs="+", type=int, metavar="ID", help="task ids of each suite; default: all")
    parser.add_argument("--first-state", type=int, default=0, help="the first initial state of each task")
    parser.add_argument("--num-states", type=int, default=10, help="so many from there on")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation on the six deltas, -1 to 1")
    parser.add_argument("--assets", help="their folder; default: those of make libero")
    parser.add_argument("--json", type=Path, default=RESULTS / "libero_expert.json", help="where trials are kept")
    parser.add_argument("--markdown", type=Path, help="where the table goes; default: beside the JSON")
    parser.add_argument("--verbose", action="store_true", help="the phases of each trial")
    args = parser.parse_args(argv)
    if not 0 <= args.first_state < args.first_state + args.num_states <= NUM_INIT_STATES:
        parser.error(f"--first-state, --num-states: not among the states 0..{NUM_INIT_STATES - 1}")
    return args


def play(sim: TaskSim, init_state: np.ndarray, max_env_steps: int, noise: float) -> tuple[bool, list[str]]:
    """One episode: success, and the phase of each env step."""
    sim.reset(init_state)
    for _ in range(SETTLE_STEPS):
        sim.advance(np.array(SETTLE_ACTION))
    expert = LiberoExpert(sim.robosuite, noise=noise, rng=np.random.default_rng(0))
    phases = []
    for _ in range(max_env_steps):
        step = expert.step()
        phases.append(step.label.phase)
        if sim.advance(step.action.astype(np.float64)):
            return True, phases
    return False, phases


def run(args: argparse.Namespace, trials: Trials) -> None:
    """Plays what is not in `trials` yet, and saves after each trial."""
    assets = find_assets(args.assets)
    import_libero(assets)
    for suite in args.suites:
        tasks = load_tasks(suite)
        ids = range(len(tasks)) if args.tasks is None else args.tasks
        bar = tqdm(total=len(ids) * args.num_states, desc=suite, unit="trial", dynamic_ncols=True)
        for task in (tasks[i] for i in ids):
            known = trials.setdefault(suite, {}).setdefault(task.name, {})
            states = range(args.first_state, args.first_state + args.num_states)
            missing = [i for i in states if str(i) not in known]
            bar.update(args.num_states - len(missing))
            if not missing:
                continue
            sim = TaskSim(task, assets)
            init_states = load_init_states(task)
            for i in missing:
                success, phases = play(sim, init_states[i], HORIZONS[suite], args.noise)
                known[str(i)] = {"success": success, "env_steps": len(phases)}
                save(args, trials)
                bar.update()
                if args.verbose:
                    runs = [p for p, before in zip(phases, [None, *phases], strict=False) if p != before]
                    bar.write(f"{task.name} {i}: {success} after {len(phases)}: {' '.join(runs)}")
            sim.close()
        bar.close()


def save(args: argparse.Namespace, trials: Trials) -> None:
    """Writes the JSON, by a rename, so that a kill leaves the old one."""
    versions = {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    result = {"versions": versions, "settle_steps": SETTLE_STEPS, "noise": args.noise, "trials": trials}
    part = args.json.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(args.json)


def load(args: argparse.Namespace) -> Trials:
    """The trials of an earlier run.

    Raises:
        ValueError: they were played with other noise.
    """
    if not args.json.exists():
        return {}
    result = json.loads(args.json.read_text())
    if result["noise"] != args.noise:
        raise ValueError(f"{args.json}: noise is {result['noise']}, not {args.noise}: give another --json")
    return result["trials"]


def table(trials: Trials) -> str:
    """Markdown: one line a suite, then one a task."""
    lines = ["| suite | tasks | trials | successes | rate |", "|---|---|---|---|---|"]
    for suite, tasks in trials.items():
        outcomes = [trial["success"] for task in tasks.values() for trial in task.values()]
        if outcomes:
            rate = f"{np.mean(outcomes):.1%}".replace("%", " %")
            lines.append(f"| {suite} | {len(tasks)} | {len(outcomes)} | {sum(outcomes)} | {rate} |")
    for suite, tasks in trials.items():
        lines += ["", f"## {suite}", "", "| task | success | env steps |", "|---|---|---|"]
        for name, task in tasks.items():
            steps = [trial["env_steps"] for trial in task.values() if trial["success"]]
            mean = f"{np.mean(steps):.0f}" if steps else ""
            lines.append(f"| {name.replace('_', ' ')} | {len(steps)}/{len(task)} | {mean} |")
    return "\n".join(lines) + "\n"


def unseen(trials: Trials) -> str:
    """Markdown: by suite, the states that nobody looked at while the experts were written."""
    lines = ["| suite | states | tasks | successes | rate | Wilson 95 % |", "|---|---|---|---|---|---|"]
    for suite, tasks in trials.items():
        held_out = load_splits(suite)["evaluate"]
        for states in (range(NUM_TUNED_STATES, held_out.start), held_out):
            played = [(int(i), t["success"]) for task in tasks.values() for i, t in task.items() if int(i) in states]
            if not played:
                continue
            ids, outcomes = zip(*played, strict=True)
            low, high = wilson_interval(sum(outcomes), len(outcomes))
            num_tasks = sum(any(int(i) in states for i in task) for task in tasks.values())
            lines.append(
                f"| {suite} | {min(ids)} to {max(ids)} | {num_tasks} | {sum(outcomes)} of {len(outcomes)} "
                f"| {100 * np.mean(outcomes):.1f} % | {100 * low:.1f} to {100 * high:.1f} |"
            )
    return "\n".join(lines) + "\n"


def document(trials: Trials) -> str:
    """The table with what a reader has to know about it."""
    return f"""# Scripted experts on LIBERO

Privileged state, official initial states, official horizons (220, 280, 300, 520, 400 env steps for spatial,
object, goal, 10, 90) after {SETTLE_STEPS} settle steps; success is LIBERO's own check; one deterministic trial a state.
Env steps are the mean over successes. Written by `python scripts/check_libero_expert.py`, with the trials and the
versions in [libero_expert.json](libero_expert.json).

## States never looked at while tuning

The experts were tuned on states 0 to {NUM_TUNED_STATES - 1} of each task. On others, those of the held-out split apart:

{unseen(trials)}
## All trials

{table(trials)}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Plays, writes and prints the table."""
    args = parse_args(argv)
    try:
        trials = load(args)
        run(args, trials)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    markdown = args.markdown or args.json.with_suffix(".md")
    markdown.write_text(document(trials))
    print(table(trials))
    return 0


if __name__ == "__main__":
    sys.exit(main())
