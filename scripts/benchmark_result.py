"""Timed runs -> medians, ratios, verdicts on the targets, and a table to read. Light: no torch."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rlvla.config import provenance

TARGETS = {"rollout_vs_lockstep": 3.0, "learner_vs_padded": 1.3, "sync_fraction": 0.02}
"""Ratio at least, or for `sync_fraction` share of a step at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One timed run."""

    seconds: float
    """Wall time."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What was got through in that time, by name."""
    parts: Mapping[str, Run] = field(default_factory=dict)
    """Timed parts of it, by name."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Other measurements of the run, whose mean is reported."""


def medians(runs: Sequence[Run]) -> dict[str, Any]:
    """`seconds` of each run, the median of every count per second, and the mean of every fact."""
    names, facts = runs[0].counts, runs[0].facts
    return {
        "seconds": [run.seconds for run in runs],
        **{f"{name}_per_s": median(run.counts[name] / run.seconds for run in runs) for name in names},
        **{name: sum(run.facts[name] for run in runs) / len(runs) for name in facts},
    }


def summarise(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """The result as JSON-able values.

    Args:
        runs: `step` (with parts `rollout`, `learner`, `sync`), `lockstep`, `simulator`, `padded`, `longest`, and
            `trl`, which may be empty.
    """
    result: dict[str, Any] = {
        part: medians([run.parts[part] for run in runs["step"]]) for part in ("rollout", "learner", "sync")
    }
    result |= {name: medians(runs[name]) for name in ("lockstep", "simulator", "padded", "longest")}
    result["trl"] = medians(runs["trl"]) if runs["trl"] else None
    result["step_seconds"] = [run.seconds for run in runs["step"]]
    result["sync_seconds"] = median(result["sync"]["seconds"])
    result |= _ratios(result)
    result["sync_fraction"] = median(run.parts["sync"].seconds / run.seconds for run in runs["step"])
    result["targets"] = {name: {"target": target, "met": _met(name, result)} for name, target in TARGETS.items()}
    return result


def _ratios(result: Mapping[str, Any]) -> dict[str, float | None]:
    rollout, learner = result["rollout"], result["learner"]

    def tokens(other: str) -> float | None:
        return learner["tokens_per_s"] / result[other]["tokens_per_s"] if result[other] else None

    return {
        "rollout_vs_lockstep": rollout["trajectories_per_s"] / result["lockstep"]["trajectories_per_s"],
        "rollout_vs_simulator": rollout["env_steps_per_s"] / result["simulator"]["env_steps_per_s"],
        "learner_vs_padded": tokens("padded"),
        "learner_vs_longest": tokens("longest"),
        "learner_vs_trl": tokens("trl"),
    }


def _met(name: str, result: Mapping[str, Any]) -> bool:
    target = TARGETS[name]
    return result[name] <= target if name == "sync_fraction" else result[name] >= target


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    facts: dict[str, Any] = {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": threads, "gpu": None}
    facts["python"] = platform.python_version()
    import torch

    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def software() -> dict[str, Any]:
    """Git commit and versions, TRL's among them where it is installed."""
    facts = provenance()
    if importlib.util.find_spec("trl"):
        facts["packages"]["trl"] = metadata.version("trl")
    return facts


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as Linux tells it, or the architecture."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(result: Mapping[str, Any]) -> str:
    """The result in words and columns."""
    rollout, lockstep, simulator = result["rollout"], result["lockstep"], result["simulator"]
    rows = [
        ("", "trajectories/s", "env steps/s", "ours is"),
        ("rollout, ours", f"{rollout['trajectories_per_s']:.2f}", f"{rollout['env_steps_per_s']:.1f}", ""),
        (
            "rollout, lockstep",
            f"{lockstep['trajectories_per_s']:.2f}",
            f"{lockstep['env_steps_per_s']:.1f}",
            _verdict("rollout_vs_lockstep", result),
        ),
        ("bare simulator", "", f"{simulator['env_steps_per_s']:.1f}", f"{result['rollout_vs_simulator']:.3f}x"),
        ("", "tokens/s", "", ""),
        ("learner, ours", f"{result['learner']['tokens_per_s']:.0f}", "", ""),
        _learner_row("learner, padded", "padded", result),
        _learner_row("learner, longest row", "longest", result),
        _learner_row("learner, TRL", "trl", result),
        ("", "seconds", "", "share of a step"),
        ("weight sync", f"{result['sync_seconds']:.3f}", "", _verdict("sync_fraction", result)),
    ]
    facts = result["machine"]
    head = f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores, medians of {result['repeats']} runs"
    lines = [f"{name:22s}{first:>16s}{second:>14s}  {last}".rstrip() for name, first, second, last in rows]
    if result["trl_reason"]:
        lines.append(f"TRL was not measured: {result['trl_reason']}")
    return "\n".join([head, *lines])


def _learner_row(name: str, key: str, result: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if result[key] is None:
        return name, "-", "", ""
    return name, f"{result[key]['tokens_per_s']:.0f}", "", _verdict(f"learner_vs_{key}", result)


def _verdict(name: str, result: Mapping[str, Any]) -> str:
    value = f"{100 * result[name]:.2f} %" if name == "sync_fraction" else f"{result[name]:.2f}x"
    if name not in TARGETS:
        return value
    bound = f"at most {100 * TARGETS[name]:g} %" if name == "sync_fraction" else f"at least {TARGETS[name]:g}x"
    return f"{value}  (target {bound}: {'met' if result['targets'][name]['met'] else 'MISSED'})"
