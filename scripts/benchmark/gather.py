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

from measuring import BARS, ROOT, is_met, table

PROMISED = (
    *("rollout_libero_vs_lockstep", "libero_share_of_limit", "decisions_vs_offline", "learner_vs_padded"),
    *("sync_vs_memcpy", "driver_mb", "async_vs_sync_waiting_env", "demo_minutes"),
)
"""The bars at the top."""


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
    for bar in PROMISED:
        owners = [name for name, part in parts.items() if bar in part]
        if len(owners) > 1:
            raise SystemExit(
                f"{bar} is in {' and in '.join(owners)}: name one of them, and an --output without the other"
            )
        if owners:
            found[bar] = parts[owners[0]][bar]
    met = {bar: is_met(bar, value) for bar, value in found.items()}
    return {**found, "met": met, "missing": [bar for bar in PROMISED if bar not in found], "parts": dict(parts)}


def render(result: Mapping[str, Any]) -> str:
    """The bars in columns."""
    rows = []
    for bar in PROMISED:
        sign, target = BARS[bar]
        verdict = {True: "met", False: "MISSED", None: "not measured"}[result["met"].get(bar)]
        rows.append((bar, result.get(bar, "-"), f"{sign} {target:g}", verdict))
    return table([("", "measured", "bar", ""), *rows])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
