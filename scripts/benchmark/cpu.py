"""CPU seconds of this process and of all that it has started, by what they do.

They say what bounds a rollout, also on a machine that is busy with something else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

KINDS = {
    "rlvla.rollout.env_server": "envs",
    "SamplerActor": "sampler",
    "RolloutActor": "rollout actors",
    "LearnerActor": "learner",
}
"""What a process does, by a part of its command line; the rest is this process, or Ray."""


def cpu_seconds() -> Counter[str]:
    """So far, by kind. What a process took that is gone is lost."""
    me = psutil.Process()
    seconds: Counter[str] = Counter()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found = process.as_dict(["cmdline", "cpu_times"])
            kind = "this process" if process == me else kind_of(" ".join(found["cmdline"] or ()))
            seconds[kind] += found["cpu_times"].user + found["cpu_times"].system
    return seconds


def kind_of(command: str) -> str:
    """What a process with this command line does."""
    return next((kind for part, kind in KINDS.items() if part in command), "Ray")


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
