"""What a soak test found: every trajectory accounted for, memory over time, and what was wrong."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.durable.files import read_lines
from rlvla.report.svg_chart import COLOURS, new_axes, to_svg
from rlvla.run.ledger import balance
from strikes import Sample

WARM_UP_S = 900.0
"""Of a process: it still starts and fills its caches, as the sampler does its KV cache page by page, and does not count
for the slope."""
LEAST_S = 600.0
"""Of a process behind its warm-up, to fit a slope to."""
CHART_EVERY = 5
"""Of a process' samples the chart shows every n-th."""
MAX_SLOPE = 2.0
"""MiB a minute by which the memory of a role may grow."""
EXIT_CODES = {
    "driver killed": {-signal.SIGKILL},
    "checkpoint damaged": {-signal.SIGKILL},
    "stuck": {-signal.SIGKILL},
    "driver preempted": {128 + signal.SIGTERM},
    "driver interrupted": {128 + signal.SIGINT},
    "end of soak": {128 + signal.SIGTERM},
    "learner killed": {1},
}
"""What the driver may end with, by the fault before it; all others it has to survive."""


def judge(
    folder: Path, events: Sequence[Mapping[str, Any]], memory: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Look through metrics and ids of a run.

    Args:
        folder: output of the GRPO run.
        events: of the soak.
        memory: what `memory_slopes` says.

    Returns:
        `steps`; `trajectories` with `started` = `finished` + `failed` + `dropped`, as `rlvla.run.ledger.balance` counts
        them, and of those `resampled` (begun again as a process died) and `learned`; `orphans`; `exit_codes`;
        `problems` in words.
    """
    metrics, ids = read_lines(folder / "metrics.jsonl"), read_lines(folder / "ids.jsonl")
    steps = [line["step"] for line in metrics]
    counts, problems = balance(folder)
    finished, failed = (round(sum(line[name] for line in metrics)) for name in ("num_finished", "env_errors"))
    orphans = [name for event in events for name in event.get("orphans", ())]
    leaks = [role for role, found in memory.items() if found.get("slope_mib_per_min", 0.0) > MAX_SLOPE]
    unexplained = unexplained_ends(events)
    checks = {
        "no step was finished": bool(metrics),
        "steps are missing or doubled in metrics.jsonl": steps == list(range(len(steps))),
        "ids.jsonl has other steps than metrics.jsonl": [line["step"] for line in ids] == steps,
        f"{finished} finished and {failed} failed in metrics.jsonl, {counts['finished']} and {counts['failed']} in "
        "ids.jsonl": (finished, failed) == (counts["finished"], counts["failed"]),
        f"{len(orphans)} processes outlived their driver": not orphans,
        "the run was stuck": all(event["fault"] != "stuck" for event in events),
        f"the run ended without a fault that explains it: {unexplained}": not unexplained,
        f"memory grows by more than {MAX_SLOPE:g} MiB a minute: {', '.join(leaks)}": not leaks,
    }
    return {
        "steps": len(metrics),
        "trajectories": counts | {name: sum(len(line[name]) for line in ids) for name in ("resampled", "learned")},
        "orphans": orphans,
        "exit_codes": dict(Counter(str(event["code"]) for event in events if "code" in event)),
        "problems": problems + [problem for problem, is_fine in checks.items() if not is_fine],
    }


def unexplained_ends(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ends of the driver that no fault since it was started accounts for, in words."""
    found, allowed = [], set()
    for event in events:
        allowed |= EXIT_CODES.get(event["fault"], set())
        if "code" in event:
            if event["code"] not in allowed:
                found.append(f"exit code {event['code']} at {event['second']:g} s")
            allowed = set()
    return found


def memory_slopes(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Role -> `max_mib` of one process, `processes`, and `slope_mib_per_min`, the median of `fitted` processes.

    The last two only where a process lived for `LEAST_S` behind `WARM_UP_S`.
    """
    result = {}
    for role, lives in _lives(samples).items():
        slopes = [slope for life in lives if (slope := _slope(life)) is not None]
        result[role] = {"max_mib": round(max(s.mib for life in lives for s in life)), "processes": len(lives)}
        if slopes:
            result[role] |= {"slope_mib_per_min": round(float(np.median(slopes)), 3), "fitted": len(slopes)}
    return result


def _slope(life: Sequence[Sample]) -> float | None:
    """MiB a minute by least squares, behind the warm-up; None of a short life."""
    late = [sample for sample in life if sample.second > life[0].second + WARM_UP_S]
    if not late or late[-1].second - late[0].second < LEAST_S:
        return None
    return float(np.polyfit([sample.second / 60 for sample in late], [sample.mib for sample in late], 1)[0])


def chart(samples: Sequence[Sample], events: Sequence[Mapping[str, Any]]) -> str:
    """Memory of every process over time, one colour a role, faults as vertical lines, as SVG."""
    figure, axes = new_axes(8.0, 4.2)
    for event in events:
        axes.axvline(event["second"] / 60, color="#888888", linewidth=0.4, alpha=0.6)
    for colour, (role, lives) in zip(COLOURS * 2, _lives(samples).items(), strict=False):
        for number, life in enumerate(lives):
            seen = life[::CHART_EVERY]
            minutes, mib = [s.second / 60 for s in seen], [s.mib for s in seen]
            axes.plot(minutes, mib, color=colour, linewidth=0.8, label=None if number else role)
    axes.set_xlabel("minutes; vertical lines: faults and restarts")
    axes.set_ylabel("own resident MiB of each process")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor="#777777")
    return to_svg(figure, salt="soak", label="memory of each process during the soak test", ink="#777777")


def _lives(samples: Sequence[Sample]) -> dict[str, list[list[Sample]]]:
    """Role -> the samples of each of its processes."""
    lives: dict[str, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        lives[sample.role][sample.pid].append(sample)
    return {role: list(by_pid.values()) for role, by_pid in sorted(lives.items())}
