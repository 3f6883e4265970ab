"""The parts of the benchmark, each measured alone, in one file with the bars at the top.

python scripts/benchmark/gather.py [outputs/benchmark/*.json] [--demo outputs/demo] [--output FILE]

A part is a file that another script wrote: scripts/benchmark/grpo.py, libero_rollout.py, decisions.py and others. Each
bar is taken from the part that has a key of its name, at the top or in a dict there. What was measured before and is in
no part that is named now is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from measuring import ROOT, table

BARS: dict[str, tuple[str, float]] = {
    "rollout_libero_vs_lockstep": (">=", 10.0),
    "libero_share_of_limit": (">=", 0.8),
    "decisions_vs_offline": (">=", 0.9),
    "learner_vs_padded": (">=", 1.3),
    "sync_vs_memcpy": ("<=", 3.0),
    "driver_mb": ("<=", 600.0),
    "async_vs_sync_waiting_env": (">=", 1.6),
    "demo_minutes": ("<=", 9.0),
}
"""What is promised of each."""


def main(*parts: Path, demo: Path | None = None, output: Path = ROOT / "docs/results/benchmark.json") -> None:
    """Gather, print the bars, write.

    Args:
        parts: files; their names, without the ending, are what the parts are called.
        demo: also take how long this demo took, a folder of scripts/demo.py.
        output: this file's `parts` are kept where none of that name is given. A file without `parts` is what grpo.py
            wrote before there were any: it becomes part `tabletop`.
    """
    if not parts:
        parts = tuple(sorted((ROOT / "outputs/benchmark").glob("*.json")))
    old = json.loads(output.read_text()) if output.is_file() else {"parts": {}}
    named = old.get("parts", {"tabletop": old}) | {part.stem: json.loads(part.read_text()) for part in parts}
    if demo is not None:
        summary = json.loads((demo / "summary.json").read_text())
        named["demo"] = summary | {"demo_minutes": summary["minutes"]}
    result = gather(named)
    print(render(result))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


def gather(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The bars at the top, which of them are met, and the parts.

    Raises:
        SystemExit: two parts have the same bar.
    """
    found: dict[str, float] = {}
    for bar in BARS:
        owners = [name for name, part in parts.items() if bar in part]
        if len(owners) > 1:
            raise SystemExit(
                f"{bar} is in {' and in '.join(owners)}: name one of them, and an --output without the other"
            )
        if owners:
            found[bar] = parts[owners[0]][bar]
    met = {
        bar: value >= BARS[bar][1] if BARS[bar][0] == ">=" else value <= BARS[bar][1] for bar, value in found.items()
    }
    return {**found, "met": met, "missing": [bar for bar in BARS if bar not in found], "parts": dict(parts)}


def render(result: Mapping[str, Any]) -> str:
    """The bars in columns."""
    rows = []
    for bar, (sign, target) in BARS.items():
        verdict = {True: "met", False: "MISSED", None: "not measured"}[result["met"].get(bar)]
        rows.append((bar, result.get(bar, "-"), f"{sign} {target:g}", verdict))
    return table([("", "measured", "bar", ""), *rows])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
