"""The paper's Table 4 at this scale: SFT only, GRPO without a cold start, the full method, and it without its zoom.

python scripts/ablation.py [--demo outputs/demo] [--seeds 0 1 2] [--output outputs/ablation] [--configs recipes/configs]

For each seed the demo's recipes run from the start (those whose `summary.json` is there already are not run again), and
GRPO once more from random weights. Prints the table and writes it to `summary.json` and `table.md`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from demo import CONFIGS, ROOT, evaluate, recipe, result

ROWS = {
    "sft": "SFT only",
    "no_cold_start": "GRPO without cold start",
    "grpo": "SFT + GRPO (full)",
    "grpo_no_zoom": "full, zoom disabled at evaluation",
}
"""Result -> how the table calls it."""


def main(
    *,
    demo: Path | None = None,
    seeds: tuple[int, ...] = (0,),
    output: Path = ROOT / "outputs/ablation",
    configs: Path = CONFIGS,
) -> None:
    """Run what is missing, then print the table.

    Args:
        demo: folder of a demo that has run with the first seed; spares that run.
        seeds: a column each.
        output: folder to make.
        configs: folder of the four recipes' configs, as of scripts/demo.py.
    """
    results = {}
    for i, seed in enumerate(seeds):
        folder = output.resolve() / f"seed-{seed}"
        start = demo.resolve() if demo and i == 0 else folder / "demo"
        results[seed] = run_demo(configs, start, seed)
        results[seed]["no_cold_start"] = without_cold_start(configs, start, folder, seed)
    table = render(results)
    (output / "summary.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / "table.md").write_text(table)
    print(table)


def run_demo(configs: Path, folder: Path, seed: int) -> dict[str, Any]:
    """The demo's three results for one seed."""
    if not (folder / "summary.json").is_file():
        flags = ("--output", str(folder), "--seed", str(seed), "--configs", str(configs))
        subprocess.run([sys.executable, str(ROOT / "scripts/demo.py"), *flags], check=True)
    summary = json.loads((folder / "summary.json").read_text())
    if summary["seed"] != seed:
        raise SystemExit(f"{folder} ran with seed {summary['seed']}, not {seed}: name its seed first in --seeds")
    return {name: summary[name] for name in ("sft", "grpo", "grpo_no_zoom")}


def without_cold_start(configs: Path, demo: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Success of GRPO that starts from the same architecture and tokenizer with random weights."""
    if not (folder / "evaluate/summary.json").is_file():
        start, run, flags = folder / "random", folder / "grpo", ("--seed", str(seed))
        recipe("sft", configs, "--dataset", f"{demo}/demos", "--output", str(start), "--num-steps", "0", *flags)
        futile = ("--max-futile-steps", "0")  # random weights: not one executable action, by design
        recipe("grpo", configs, "--model", f"{start}/checkpoint", "--output", str(run), *futile, *flags)
        shutil.rmtree(folder / "evaluate", ignore_errors=True)  # trials of a checkpoint before this one
        evaluate(configs, run / "checkpoint", folder / "evaluate", seed)
    return result(folder / "evaluate")


def render(results: dict[int, dict[str, Any]]) -> str:
    """A Markdown table, a column a seed."""
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in results) + " |", "|---|" + "---|" * len(results)]
    for key, name in ROWS.items():
        cells = ["{rate:.1%} [{low:.1%}, {high:.1%}]".format(**of_seed[key]) for of_seed in results.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
