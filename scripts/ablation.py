"""The paper's Table 4 at this scale: SFT only, GRPO without a cold start, the full method, and it without its zoom.

python scripts/ablation.py [--demo outputs/demo] [--configs recipes/configs]

Three of the rows are what a demo has measured (`scripts/demo.py --seed 1 --output ...` for another seed). GRPO once
more from random weights is run here, into `no_cold_start/` of the demo's folder, unless it is there. Prints the table,
and writes `ablation.json` and `ablation.md` beside the demo's `summary.json`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tyro

from demo import CONFIGS, ROOT, evaluate, recipe, result

ROWS = {
    "sft": "SFT only",
    "no_cold_start": "GRPO without cold start",
    "grpo": "SFT + GRPO (full)",
    "grpo_no_zoom": "full, zoom disabled at evaluation",
}
"""Result -> how the table calls it."""


def main(*, demo: Path = ROOT / "outputs/demo", configs: Path = CONFIGS) -> None:
    """Run what is missing, then print the table.

    Args:
        demo: folder of a demo that has run.
        configs: folder of the four recipes' configs, as of scripts/demo.py.
    """
    demo = demo.resolve()
    if not (demo / "summary.json").is_file():
        raise SystemExit(f"{demo} holds no demo that has run: python scripts/demo.py --output {demo}")
    summary = json.loads((demo / "summary.json").read_text())
    start, run, evaluation = (demo / "no_cold_start" / name for name in ("random", "grpo", "evaluate"))
    if not (evaluation / "summary.json").is_file():
        flags = ("--seed", str(summary["seed"]))
        recipe("sft", configs, "--dataset", f"{demo}/demos", "--output", str(start), "--num-steps", "0", *flags)
        futile = ("--max-futile-steps", "0")  # random weights: not one executable action, by design
        recipe("grpo", configs, "--model", f"{start}/checkpoint", "--output", str(run), *futile, *flags)
        shutil.rmtree(evaluation, ignore_errors=True)  # trials of a checkpoint before this one
        evaluate(configs, run / "checkpoint", evaluation, summary["seed"])
    results = summary | {"no_cold_start": result(evaluation)}
    lines = [f"| | seed {summary['seed']} |", "|---|---|"]
    lines += ["| {} | {rate:.1%} [{low:.1%}, {high:.1%}] |".format(name, **results[key]) for key, name in ROWS.items()]
    (demo / "ablation.json").write_text(json.dumps({key: results[key] for key in ROWS}, indent=2) + "\n")
    (demo / "ablation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
