"""Which shifted initial states of LIBERO-Object the scripted expert solves: makes the manifest that `shift` needs.

    python scripts/check_libero_shifted.py --shift 0.035
    python scripts/check_libero_shifted.py --shift 0.035 --tasks 0 1 --num-train 40 --num-evaluate 10

3 to 5 s of CPU a state, nothing is rendered. The manifest is written after each state, so that a run that was stopped
goes on where it was, and a later one adds tasks or states; delete it after a change of the expert.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from json import dumps, loads
from pathlib import Path

import tyro
from tqdm import tqdm

import rlvla_envs
from check_libero_expert import play
from rlvla.durable.files import appear_whole
from rlvla_envs.libero.assets import find_assets, import_libero
from rlvla_envs.libero.shifted import (
    FIRST_EVALUATE_ID,
    MAX_SHIFT,
    SUITE,
    base_state,
    check_shift,
    manifest_name,
    shift_objects,
)
from rlvla_envs.libero.sim import TaskSim
from rlvla_envs.libero.tasks import HORIZONS, LiberoTask, load_init_states, load_tasks

MANIFESTS = Path(rlvla_envs.__file__).parent / "manifests"

Found = dict[str, dict[str, list[int]]]
""""solved" or "failed" -> task name -> initial state ids."""


def read(file: Path, shift: float) -> Found:
    """What is known; nothing where there is no file. Raises ValueError where it is of another shift."""
    if not file.exists():
        return {"solved": {}, "failed": {}}
    told = loads(file.read_text())
    if told["shift"] != shift:
        raise ValueError(f"{file} is of shift {told['shift']}, not {shift}: name another --json")
    return {outcome: told[outcome] for outcome in ("solved", "failed")}


def write(file: Path, shift: float, found: Found) -> None:
    """The manifest, a line a task; whole or not at all."""
    lines = []
    for outcome, tasks in found.items():
        ids = ",\n".join(f"    {dumps(task)}: {dumps(sorted(states))}" for task, states in tasks.items())
        lines.append(f'  "{outcome}": {{\n{ids}\n  }}')
    text = f'{{\n  "suite": "{SUITE}",\n  "shift": {shift},\n' + ",\n".join(lines) + "\n}\n"
    with appear_whole(file) as writer:
        writer.write(text.encode())


def scan(task: LiberoTask, states: Sequence[int], shift: float, file: Path, found: Found) -> None:
    """Plays the states of a task that nobody has played yet."""
    known = {i for outcome in found.values() for i in outcome.setdefault(task.name, [])}
    if not (missing := [i for i in states if i not in known]):
        return
    sim, official = TaskSim(task, find_assets()), load_init_states(task)
    for i in tqdm(missing, desc=task.name, unit="state", mininterval=2):
        state = shift_objects(sim.robosuite, task.name, official[base_state(i)], shift, i)
        try:
            is_solved, _ = play(sim, state, HORIZONS[SUITE], rests=True)  # as poses are recorded
        except FloatingPointError:  # what stands in something else may fly apart
            is_solved = False
        found["solved" if is_solved else "failed"][task.name].append(i)
        write(file, shift, found)
    sim.close()


def main(
    *,
    shift: float = MAX_SHIFT,
    tasks: tuple[int, ...] = (),
    num_train: int = 100,
    num_evaluate: int = 20,
    json: Path | None = None,
) -> int:
    """Plays, writes and counts.

    Args:
        shift: most that target and basket are moved in x and in y, m: whole millimetres.
        tasks: ids in the suite; default: all.
        num_train: states of each task to learn from.
        num_evaluate: held-out ones.
        json: the manifest; default: where the env looks for it.
    """
    try:
        check_shift(SUITE, shift)
        file = json or MANIFESTS / manifest_name(shift)
        found = read(file, shift)
        import_libero(find_assets())
        all_tasks = load_tasks(SUITE)
        states = [*range(num_train), *range(FIRST_EVALUATE_ID, FIRST_EVALUATE_ID + num_evaluate)]
        for task in [all_tasks[i] for i in tasks] or all_tasks:
            scan(task, states, shift, file, found)
            print(f"{task.name}: {len(found['solved'][task.name])} solved, {len(found['failed'][task.name])} not")
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
