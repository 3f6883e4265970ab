"""The run that a soak test plays with: its process tree by role, its faults, and its memory."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"ray::SamplerActor": "sampler", "ray::RolloutActor": "rollout", "ray::LearnerActor": "learner"}
"""Start of a command line -> role."""
ENV_SERVER = "rlvla.rollout.env_server"
"""In the command line of the process that envs are forked from, and of the envs."""
EXIT_S = 90.0
"""How long the processes of a run may outlive their driver, seconds. Ray's own agents look for their parent only once a
minute."""


class Sample(NamedTuple):
    """One look at one process."""

    second: float
    """Since the soak began."""
    role: str
    pid: int
    mib: float
    """Resident memory that is its own: without libraries and Ray's object store, which processes share."""


@dataclass(kw_only=True)
class SoakRun:
    """`recipes/grpo.py` in a process of its own, started again whenever a fault has ended it."""

    flags: Sequence[str]
    """Of the recipe; its output is the folder `run`."""
    output: Path
    driver: psutil.Popen = None  # type: ignore[assignment]
    """Of the last start."""
    known: dict[psutil.Process, float] = field(default_factory=dict)
    """Every process that was seen, and the time by which it must have ended: infinity while its driver lives."""
    samples: list[Sample] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Start the recipe, which resumes from its last whole checkpoint."""
        self._let_go()
        command = [sys.executable, str(ROOT / "recipes/grpo.py"), *self.flags, "--output", str(self.output / "run")]
        with (self.output / "driver.log").open("ab") as log:
            self.driver = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def by_role(self) -> dict[str, list[psutil.Process]]:
        """The processes that live now."""
        roles: dict[str, list[psutil.Process]] = defaultdict(list)
        with suppress(psutil.NoSuchProcess):  # the driver has ended
            for process in (self.driver, *self.driver.children(recursive=True)):
                with suppress(psutil.Error):  # it has just ended
                    roles[self._role(process)].append(process)
                    self.known.setdefault(process, math.inf)
        return roles

    def _role(self, process: psutil.Process) -> str:
        if process == self.driver:
            return "driver"
        command = " ".join(process.cmdline())
        if ENV_SERVER in command:
            parent = process.parent()
            return "env" if parent is not None and ENV_SERVER in " ".join(parent.cmdline()) else "env_server"
        return next((role for start, role in ROLES.items() if command.startswith(start)), "other")

    def look(self) -> None:
        """Add a sample of every process that has a role."""
        second = time.monotonic() - self.began
        for role, processes in self.by_role().items():
            for process in processes if role != "other" else ():
                with suppress(psutil.Error):  # it has just ended
                    self.samples.append(Sample(second, role, process.pid, own_mib(process)))

    def lines(self) -> list[str]:
        """The metrics so far, a JSON object for each step."""
        file = self.output / "run/metrics.jsonl"
        return file.read_text().splitlines() if file.is_file() else []

    def end(self) -> int | None:
        """Ask the driver to end, as a preemption does; its exit code, None when it had to be killed."""
        self.by_role()
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            self.driver.send_signal(signal.SIGTERM)
        with suppress(psutil.TimeoutExpired):
            return self.driver.wait(EXIT_S)
        self.kill()
        return None

    def kill(self) -> None:
        """End the driver at once."""
        self.by_role()
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            self.driver.kill()
        self.driver.wait()

    def orphans(self, *, wait: bool = False) -> list[str]:
        """Command lines of processes that outlived their driver by `EXIT_S`; they are killed.

        Args:
            wait: for those whose time is not over yet; those of the present driver, which has ended, are among them.
        """
        now = time.monotonic()
        if wait:
            self._let_go()
            psutil.wait_procs(list(self.known), EXIT_S)
            now = math.inf
        names = []
        for process in [process for process, until in self.known.items() if now >= until]:
            del self.known[process]
            with suppress(psutil.Error):  # it has just ended
                if process.is_running():
                    names.append(" ".join(process.cmdline())[:120])
                    process.kill()
        return names

    def _let_go(self) -> None:
        """The driver has ended: what it had started may live on for a while."""
        until = time.monotonic() + EXIT_S
        self.known = {process: min(late, until) for process, late in self.known.items()}


def own_mib(process: psutil.Process) -> float:
    """Anonymous resident memory, MiB: what is left without files and shared memory; raises psutil.Error at its end."""
    memory = process.memory_info()
    return (memory.rss - memory.shared) / 2**20


Fault = Callable[[SoakRun, random.Random], str]
"""Returns the deed in words, or nothing when it was not possible just now."""


def send(number: signal.Signals, role: str, run: SoakRun, rng: random.Random) -> str:
    """A fault: a signal to one process of a role."""
    processes = run.by_role().get(role, [])
    if not processes:
        return ""
    process = rng.choice(processes)
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(process.pid, number)
    return f"{number.name} to {role} {process.pid}"


def flip_a_bit(run: SoakRun, rng: random.Random) -> str:
    """A fault: kill the driver and damage the newest checkpoint, so that it must go on from the one before."""
    if len(list((run.output / "run/state").glob("step-*"))) < 2:
        return ""
    killed = send(signal.SIGKILL, "driver", run, rng)
    run.driver.wait()
    states = sorted((run.output / "run/state").glob("step-*"))
    file = rng.choice(sorted(path for path in states[-1].rglob("*") if path.is_file() and path.stat().st_size))
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"{killed}, bit flipped in {file.relative_to(run.output)}"


FAULTS: dict[str, Fault] = {
    "env killed": partial(send, signal.SIGKILL, "env"),
    "env hung": partial(send, signal.SIGSTOP, "env"),
    "env server killed": partial(send, signal.SIGKILL, "env_server"),
    "env server hung": partial(send, signal.SIGSTOP, "env_server"),
    "rollout actor killed": partial(send, signal.SIGKILL, "rollout"),
    "sampler killed": partial(send, signal.SIGKILL, "sampler"),
    "learner killed": partial(send, signal.SIGKILL, "learner"),
    "driver killed": partial(send, signal.SIGKILL, "driver"),
    "driver preempted": partial(send, signal.SIGTERM, "driver"),
    "driver interrupted": partial(send, signal.SIGINT, "driver"),
    "checkpoint damaged": flip_a_bit,
}
