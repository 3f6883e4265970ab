"""CPU seconds of this process and of all that it has started, by what they do. Linux only.

They say what bounds a rollout, also on a machine that is busy with something else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS = {
    "rlvla.rollout.env_server": "envs",
    "SamplerActor": "sampler",
    "RolloutActor": "rollout actors",
    "LearnerActor": "learner",
}
"""What a process does, by a part of its command line; the rest is this process, or Ray."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(proc: Path = Path("/proc")) -> Counter[str]:
    """So far, by kind. Of a process that has ended, what its parent has not waited for is lost."""
    parents, spent, kinds = {}, {}, {}
    for folder in proc.glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        pid = int(folder.name)
        parents[pid] = int(stat[1])
        spent[pid] = _TICK_S * (int(stat[11]) + int(stat[12]))
        kinds[pid] = next((kind for part, kind in KINDS.items() if part in command), "Ray")
    kinds[os.getpid()] = "this process"
    seconds: Counter[str] = Counter()
    for pid, kind in kinds.items():
        if _descends(pid, os.getpid(), parents):
            seconds[kind] += spent[pid]
    return seconds


def since(before: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by kind since `cpu_seconds` said `before`, what took none left out."""
    now = cpu_seconds()
    return {f"cpu_s/{kind}": s for kind in sorted(now) if (s := now[kind] - before.get(kind, 0.0)) > 0}


def busy_cores(measured: Mapping[str, Any]) -> dict[str, float]:
    """Cores that each kind of process kept busy over runs as `measuring.medians` has them, the most first.

    What bounds a rollout is what has as many cores as it can use: an engine one for each of its threads, the simulators
    all that the others leave. Where the sum is well below the machine's cores, something waits.
    """
    seconds = sum(measured["seconds"]) / len(measured["seconds"])
    busy = {key.removeprefix("cpu_s/"): s / seconds for key, s in measured.items() if key.startswith("cpu_s/")}
    return dict(sorted(busy.items(), key=lambda one: -one[1]))


def told(busy: Mapping[str, float]) -> str:
    """`busy_cores` to read."""
    parts = ", ".join(f"{kind} {cores:.2f}" for kind, cores in busy.items() if cores >= 0.01)
    return f"cores kept busy: {parts}; {sum(busy.values()):.2f} of {os.cpu_count()}"


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid != ancestor and pid in parents:
        pid = parents[pid]
    return pid == ancestor
