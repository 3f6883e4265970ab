"""One page to look at: results, learning curves and episodes of some run folders, in a single HTML file.

    python scripts/report.py outputs/sft outputs/grpo outputs/evaluate --output report.html

Takes from each folder what is there: `summary.json`, `metrics.jsonl`, `trajectories.jsonl`. The page loads nothing from
anywhere else, so it can be mailed or kept beside the run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report_curves
import report_episodes
import report_results
from rlvla.durable.trajectories import load_trajectories
from rlvla.report import html_page
from rlvla.run.metrics import read_metrics
from rlvla.types import Trajectory

FILES = ("summary.json", "metrics.jsonl", "trajectories.jsonl")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds."""

    name: str
    summary: dict[str, Any]
    metrics: list[dict[str, float | None]]
    trajectories: tuple[Trajectory, ...]


def read_run(folder: Path, name: str) -> Run:
    """Read a folder; raises FileNotFoundError when it has none of `FILES`, ValueError when one is broken."""
    summary, metrics, trajectories = (folder / file for file in FILES)
    if not any(path.is_file() for path in (summary, metrics, trajectories)):
        raise FileNotFoundError(f"{folder} has none of {', '.join(FILES)}: it is no run folder")
    try:
        return Run(
            name=name,
            summary=json.loads(summary.read_text()) if summary.is_file() else {},
            metrics=read_metrics(metrics) if metrics.is_file() else [],
            trajectories=load_trajectories(trajectories) if trajectories.is_file() else (),
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder}: summary.json or metrics.jsonl is broken: {error}") from error


def names(folders: Sequence[Path]) -> list[str]:
    """Short names: what of the folders' paths differs; the own name of a folder that holds all the others."""
    paths = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath(paths))
    return [path.name if path == common else path.relative_to(common).as_posix() for path in paths]


def render(runs: Sequence[Run], title: str) -> str:
    """The page."""
    results = report_results.section([(run.name, run.summary) for run in runs])
    curves = report_curves.section([(run.name, run.metrics) for run in runs if run.metrics])
    episodes = report_episodes.section([(run.name, run.trajectories) for run in runs if run.trajectories])
    sections = {"Results": results, "Learning": curves, "Episodes": episodes}
    return html_page.page(title, {heading: body for heading, body in sections.items() if body})


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 1 and one line of explanation when a folder cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    parser.add_argument("--title", default="rlvla report")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(folder, name) for folder, name in zip(args.folders, names(args.folders), strict=True)]
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(render(runs, args.title), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
