"""One page to look at: results, learning curves and episodes of some run folders, in a single HTML file.

    python scripts/report.py outputs/sft outputs/grpo outputs/evaluate --output report.html

Takes from each folder what is there: `summary.json`, `metrics.jsonl`, `trajectories.jsonl`. The page loads nothing from
anywhere else, so it can be mailed or kept beside the run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from rlvla.durable.files import read_lines
from rlvla.durable.trajectories import load_trajectories
from rlvla.policies.markup import ToolCall, parse_call
from rlvla.report.run_page import Run, run_page
from rlvla.types import Segment

FILES = ("summary.json", "metrics.jsonl", "trajectories.jsonl")


def read_run(folder: Path, name: str) -> Run:
    """Read a folder; raises FileNotFoundError when it has none of `FILES`, ValueError when one is broken."""
    summary, metrics, trajectories = (folder / file for file in FILES)
    if not any(path.is_file() for path in (summary, metrics, trajectories)):
        raise FileNotFoundError(f"{folder} has none of {', '.join(FILES)}: it is no run folder")
    try:
        return Run(
            name=name,
            summary=json.loads(summary.read_text()) if summary.is_file() else {},
            metrics=read_lines(metrics) if metrics.is_file() else [],
            trajectories=load_trajectories(trajectories) if trajectories.is_file() else (),
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder}: summary.json or metrics.jsonl is broken: {error}") from error


def names(folders: Sequence[Path]) -> list[str]:
    """Short names: what of the folders' paths differs; the own name of a folder that holds all the others."""
    paths = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath(paths))
    return [path.name if path == common else path.relative_to(common).as_posix() for path in paths]


def camera_of(call: Segment) -> int:
    """Which camera an accepted call looked at; only the call's own words say it."""
    parsed = parse_call(call.text)
    camera = parsed.arguments.get("image") if isinstance(parsed, ToolCall) else None
    return camera if isinstance(camera, int) else 0


def main(folders: tuple[Path, ...], /, *, output: Path = Path("report.html"), title: str = "rlvla report") -> int:
    """Write the page; 1 and one line of explanation when a folder cannot be read.

    Args:
        folders: of runs.
        output: the page.
        title: of it.
    """
    if not folders:
        raise SystemExit("name the folders of some runs")
    try:
        runs = [read_run(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(run_page(runs, title, camera_of), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
