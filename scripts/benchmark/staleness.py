"""Trajectories per hour with rollouts that run ahead of the learner, against a loop in which each waits for the other.

python scripts/benchmark/staleness.py [--model outputs/demo/sft/checkpoint] [--output staleness_benchmark.json]

The env is the tabletop as if on another machine (`waiting_env`): its chunks take wall time and no CPU. On a machine
whose simulators share the CPUs with the learner nothing is gained by doing both at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro
import yaml

from measuring import ROOT, checkpoint_name, table, write_result

WARM_UP = 2
"""Steps that do not count."""


def main(
    *,
    model: Path = ROOT / "outputs/demo/sft/checkpoint",
    config: Path = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml",
    wait_s: float = 1.5,
    num_steps: int = 14,
    groups_per_step: int = 4,
    max_staleness: tuple[int, ...] = (0, 1, 2),
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Run the recipe once for each, print a table, write the result.

    Args:
        model: a checkpoint of a cold start.
        config: of the runs.
        wait_s: seconds that a chunk of env steps takes.
        num_steps: of each run; the first two do not count, nor the last ones, in which nothing is begun any more.
        groups_per_step: see `GRPOConfig`.
        max_staleness: of the runs, the first of which the others are divided by.
        seed: of tasks and sampling.
        output: also write the result here, as JSON.
    """
    name, last = checkpoint_name(model), num_steps - max(max_staleness)
    if last <= WARM_UP:
        raise SystemExit(f"--num-steps: {num_steps} leave no step to measure")
    settings = yaml.safe_load(config.read_text()) | {
        "model": str(model.resolve()),
        "num_steps": num_steps,
        "groups_per_step": groups_per_step,
        "max_futile_steps": 0,
        "seed": seed,
    }
    num_trajectories = settings["group_size"] * groups_per_step
    settings["minibatch_trajectories"] = num_trajectories
    settings["cluster"]["envs_per_actor"] = num_trajectories * (1 + max(max_staleness))
    settings["env"]["id"] = "waiting_env:rlvla/Waiting-v0"
    settings["env"]["kwargs"]["wait_s"] = wait_s
    runs = [{"max_staleness": n, **run({**settings, "max_staleness": n}, last)} for n in max_staleness]
    first = runs[0]["trajectories_per_h"]
    for line in runs:
        line["vs_first"] = line["trajectories_per_h"] / first
    print(table([[*runs[0]], *([*line.values()] for line in runs)]))
    facts = {"wait_s": wait_s, "num_steps": num_steps, "groups_per_step": groups_per_step, "seed": seed, "model": name}
    write_result({"runs": runs, "async_vs_sync_waiting_env": runs[1]["vs_first"], **facts}, output)


def run(settings: Mapping[str, Any], last: int) -> dict[str, float]:
    """Trajectories per hour of a run of the recipe, and seconds of the parts of a step, means over those that count."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump({**settings, "output": folder + "/run"}))
        search = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, str(ROOT / "recipes/grpo.py"), "--config", str(config)]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": search})
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][WARM_UP:last]
    parts = {
        part: sum(step.get(f"time/{part}_s", 0.0) for step in steps) / len(steps)
        for part in ("rollout", "learn", "sync")
    }
    num = sum(step["num_trajectories"] for step in steps) / len(steps)
    return {
        "trajectories_per_h": 3600 * num / sum(parts.values()),
        **{f"{part}_s": seconds for part, seconds in parts.items()},
        "staleness": sum(step.get("staleness", 0.0) for step in steps) / len(steps),
        "success": sum(step["success"] for step in steps) / len(steps),
    }


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
