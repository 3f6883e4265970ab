"""How often LIBERO's scripted experts succeed, task by task.

    python scripts/check_libero_expert.py --suites libero_object libero_spatial --num-states 10
    python scripts/check_libero_expert.py --suites libero_object libero_spatial --first-state 40 --num-states 5
    python scripts/check_libero_expert.py --suites libero_90 --tasks 3 17 --num-states 2 --verbose

Official horizons, settle steps and initial states; success is LIBERO's own check. Nothing is rendered. Every trial is
written at once, so that a run that was stopped goes on where it was; delete the JSON after a change of the expert.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from rlvla.durable.files import appear_whole
from rlvla.run.metrics import wilson_interval
from rlvla_envs.libero import SETTLE_ACTION
from rlvla_envs.libero_assets import find_assets, import_libero
from rlvla_envs.libero_expert import LiberoExpert
from rlvla_envs.libero_sim import TaskSim
from rlvla_envs.libero_tasks import HORIZONS, NUM_INIT_STATES, SUITES, load_init_states, load_splits, load_tasks

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SETTLE_STEPS = 10
"""`num_steps_wait` of OpenVLA-OFT's run_libero_eval.py."""
Suite = Literal[*SUITES]
NUM_TUNED_STATES = 5
"""The experts were tuned on states 0 to 4 of each task."""
PACKAGES = ("hf-libero", "robosuite", "mujoco", "numpy")
"""Their versions move the results."""

Trials = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""Suite, task name, initial state id -> `success` and `env_steps`."""


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


@dataclass(kw_only=True)
class Book:
    """The trials, in a JSON that is written after each."""

    file: Path
    noise: float
    trials: Trials = field(default_factory=dict)

    def read(self) -> None:
        """Go on from an earlier run; raises ValueError when its trials were played with other noise."""
        if self.file.exists():
            result = json.loads(self.file.read_text())
            if result["noise"] != self.noise:
                raise ValueError(f"{self.file}: noise is {result['noise']}, not {self.noise}: give another --json")
            self.trials = result["trials"]

    def write(self) -> None:
        """A kill leaves the old one."""
        versions = {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
        result = {"versions": versions, "settle_steps": SETTLE_STEPS, "noise": self.noise, "trials": self.trials}
        with appear_whole(self.file) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())


def run(suite: str, tasks: Sequence[int], states: range, book: Book, assets: Path, *, verbose: bool) -> None:
    """Plays what is not in the book yet."""
    all_tasks = load_tasks(suite)
    with tqdm(total=len(tasks or all_tasks) * len(states), desc=suite, unit="trial", dynamic_ncols=True) as bar:
        for task in [all_tasks[i] for i in tasks] or all_tasks:
            known = book.trials.setdefault(suite, {}).setdefault(task.name, {})
            missing = [i for i in states if str(i) not in known]
            bar.update(len(states) - len(missing))
            if not missing:
                continue
            sim = TaskSim(task, assets)
            init_states = load_init_states(task)
            for i in missing:
                success, phases = play(sim, init_states[i], HORIZONS[suite], book.noise)
                known[str(i)] = {"success": success, "env_steps": len(phases)}
                book.write()
                bar.update()
                if verbose:
                    bar.write(
                        f"{task.name} {i}: {success} after {len(phases)}: {' '.join(p for p, _ in groupby(phases))}"
                    )
            sim.close()


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


def main(
    *,
    suites: tuple[Suite, ...] = SUITES,
    tasks: tuple[int, ...] = (),
    first_state: int = 0,
    num_states: int = 10,
    noise: float = 0.0,
    assets: str | None = None,
    json: Path = RESULTS / "libero_expert.json",
    markdown: Path | None = None,
    verbose: bool = False,
) -> int:
    """Plays, writes and prints the table.

    Args:
        suites: which.
        tasks: ids in each suite; default: all.
        first_state: the first initial state of each task.
        num_states: so many from there on.
        noise: standard deviation on the six deltas, -1 to 1.
        assets: their folder; default: those of make libero.
        json: where trials are kept.
        markdown: where the table goes; default: beside the JSON.
        verbose: tell the phases of each trial.
    """
    if not 0 <= first_state < first_state + num_states <= NUM_INIT_STATES:
        raise SystemExit(f"--first-state, --num-states: not among the states 0..{NUM_INIT_STATES - 1}")
    book = Book(file=json, noise=noise)
    try:
        book.read()
        found = find_assets(assets)
        import_libero(found)
        for suite in suites:
            run(suite, tasks, range(first_state, first_state + num_states), book, found, verbose=verbose)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    (markdown or json.with_suffix(".md")).write_text(document(book.trials))
    print(table(book.trials))
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
