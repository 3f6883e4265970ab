"""CPU seconds of this process and of all that it has started, by what they do. Linux only.

They say what bounds a rollout, also on a machine that is busy with something else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

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


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid != ancestor and pid in parents:
        pid = parents[pid]
    return pid == ancestor
