"""The main job on the built-in simulator: demonstrations, SFT cold start, GRPO, evaluation, report.

python scripts/demo.py [--output outputs/demo] [--seed 0] [--configs recipes/configs]

Runs the four recipes one after the other with their `*_tiny_tabletop.yaml`, and writes `summary.json` with the
success of the SFT policy, of the GRPO policy, and of the GRPO policy without its zoom tool, on the same states.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes/configs"


def recipe(name: str, configs: Path, *flags: str) -> None:
    """Run one recipe, as a user would; raises SystemExit naming it when it fails."""
    config = configs.resolve() / f"{name}_tiny_tabletop.yaml"
    command = [sys.executable, str(ROOT / f"recipes/{name}.py"), "--config", str(config), *flags]
    print(f"\n== {name}: {' '.join(command[1:])}", flush=True)
    if code := subprocess.run(command, check=False, cwd=ROOT).returncode:
        raise SystemExit(f"recipes/{name}.py failed with exit code {code}; its message is above")


def evaluate(configs: Path, model: Path, output: Path, seed: int, *flags: str) -> dict[str, Any]:
    """Success of a checkpoint on the held-out states."""
    recipe("evaluate", configs, "--model", str(model), "--output", str(output), "--seed", str(seed), *flags)
    summary = json.loads((output / "summary.json").read_text())
    return {key: summary[key] for key in ("rate", "low", "high", "num_trials")}


def main() -> None:
    """Run everything; an output folder that exists already is refused, since a demo starts from nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of the four recipes' configs")
    args = parser.parse_args()
    output: Path = args.output.resolve()
    if output.exists():
        raise SystemExit(f"{output} exists: move it away, or name another folder with --output")
    started = time.perf_counter()
    configs, seed = args.configs, ("--seed", str(args.seed))
    start, trained = output / "sft/checkpoint", output / "grpo/checkpoint"

    def rate(model: Path, name: str, *flags: str) -> dict[str, Any]:
        return evaluate(configs, model, output / f"evaluate_{name}", args.seed, *flags)

    recipe("annotate", configs, "--output", f"{output}/demos", *seed)
    recipe("sft", configs, "--dataset", f"{output}/demos", "--output", f"{output}/sft", *seed)
    results = {"sft": rate(start, "sft")}
    recipe("grpo", configs, "--model", str(start), "--output", f"{output}/grpo", *seed)
    results["grpo"] = rate(trained, "grpo")
    results["grpo_no_zoom"] = rate(trained, "grpo_no_zoom", "--episode.mode", "think")
    summary = {**results, "minutes": round((time.perf_counter() - started) / 60, 1), "seed": args.seed}
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(output)


def report(output: Path) -> None:
    """Print the result and write the page."""
    summary = json.loads((output / "summary.json").read_text())
    print()
    for name in ("sft", "grpo", "grpo_no_zoom"):
        r = summary[name]
        print(
            f"{name:14s} success {100 * r['rate']:5.1f} %  "
            f"[{100 * r['low']:.1f}, {100 * r['high']:.1f}] (Wilson 95 %, {r['num_trials']} held-out states)"
        )
    page = output / "report.html"
    folders = [output, output / "sft", output / "grpo", *sorted(output.glob("evaluate_*"))]
    subprocess.run(
        [sys.executable, str(ROOT / "scripts/report.py"), *map(str, folders), "--output", str(page)], check=True
    )
    print(f"{summary['minutes']} minutes; look at {page}")


if __name__ == "__main__":
    main()
