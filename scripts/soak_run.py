"""The run that a soak test plays with: its process tree by role, its faults, and what its memory does."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
ROLES = {"ray::SamplerActor": "sampler", "ray::RolloutActor": "rollout", "ray::LearnerActor": "learner"}
"""Start of a command line -> role."""
EXIT_S = 90.0
"""How long the processes of a run may outlive their driver, seconds. Ray's own agents look for their parent only once a
minute."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at one process."""

    second: float
    """Since the soak began."""
    role: str
    pid: int
    memory: int
    """Resident memory that is its own, bytes: without libraries and Ray's object store, which processes share."""


@dataclass(kw_only=True)
class SoakRun:
    """`recipes/grpo.py` in a process of its own, started again whenever a fault has ended it."""

    config: Path
    output: Path
    driver: psutil.Popen | None = None
    known: dict[int, psutil.Process] = field(default_factory=dict)
    """Every process of the present driver that was ever seen, by pid."""
    leaving: list[tuple[float, psutil.Process]] = field(default_factory=list)
    """Those of earlier drivers, with the time by which they must have ended."""
    samples: list[Sample] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Start the recipe, which resumes from its last whole checkpoint."""
        self._let_go()
        command = [sys.executable, str(ROOT / "recipes/grpo.py"), "--config", str(self.config)]
        log = (self.output / "driver.log").open("ab")
        self.driver = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT)
        log.close()

    def by_role(self) -> dict[str, list[psutil.Process]]:
        """The processes that live now."""
        assert self.driver is not None
        roles: dict[str, list[psutil.Process]] = defaultdict(list)
        for process in [self.driver, *self._descendants()]:
            try:
                roles[self._role(process)].append(process)
                self.known[process.pid] = process
            except psutil.Error:
                continue  # it has just ended
        return roles

    def look(self) -> None:
        """Add a sample of every process that has a role."""
        second = time.monotonic() - self.began
        for role, processes in self.by_role().items():
            for process in processes if role != "other" else ():
                memory = own_memory(process.pid)
                if memory is not None:
                    self.samples.append(Sample(second=second, role=role, pid=process.pid, memory=memory))

    def lines(self) -> list[str]:
        """The metrics so far, a JSON object for each step."""
        file = self.output / "run/metrics.jsonl"
        return file.read_text().splitlines() if file.is_file() else []

    def end(self) -> int | None:
        """Ask the driver to end, as a preemption does; its exit code, None when it had to be killed."""
        assert self.driver is not None
        self.by_role()
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            self.driver.send_signal(signal.SIGTERM)
        with suppress(psutil.TimeoutExpired):
            return self.driver.wait(EXIT_S)
        self.kill()
        return None

    def kill(self) -> None:
        """End the driver at once."""
        assert self.driver is not None
        self.by_role()
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            self.driver.kill()
        self.driver.wait()

    def orphans(self, *, wait: bool = False) -> list[str]:
        """Command lines of processes that outlived their driver by `EXIT_S`; they are killed.

        Args:
            wait: for those whose time is not over yet; those of the present driver, which has ended, are among them.
        """
        if wait:
            self._let_go()
            psutil.wait_procs([process for _, process in self.leaving], EXIT_S)
        now = time.monotonic()
        late = [process for until, process in self.leaving if (wait or now > until) and process.is_running()]
        self.leaving = [(until, process) for until, process in self.leaving if not wait and now <= until]
        names = []
        for process in late:
            with suppress(psutil.Error):  # it has just ended
                names.append(" ".join(process.cmdline())[:120])
                process.kill()
        return names

    def _let_go(self) -> None:
        until = time.monotonic() + EXIT_S
        self.leaving += [(until, process) for process in self.known.values()]
        self.known = {}

    def _descendants(self) -> list[psutil.Process]:
        assert self.driver is not None
        try:
            return self.driver.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _role(self, process: psutil.Process) -> str:
        if process == self.driver:
            return "driver"
        command = " ".join(process.cmdline())
        for start, role in ROLES.items():
            if command.startswith(start):
                return role
        if "rlvla.rollout.env_server" not in command:
            return "other"
        parent = process.parent()
        return (
            "env" if parent is not None and "rlvla.rollout.env_server" in " ".join(parent.cmdline()) else "env_server"
        )


def own_memory(pid: int) -> int | None:
    """Anonymous resident memory of a process, bytes (`RssAnon`, proc_pid_status(5)); None when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) << 10 if found else None  # a zombie has none


def kill(role: str, number: signal.Signals) -> Callable[[SoakRun, random.Random], str]:
    """A fault: send a signal to one process of a role; returns what was done, empty when there is none."""

    def fault(run: SoakRun, rng: random.Random) -> str:
        processes = run.by_role().get(role, [])
        if not processes:
            return ""
        process = rng.choice(processes)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(process.pid, number)
        return f"{number.name} to {role} {process.pid}"

    return fault


def flip_a_bit(run: SoakRun, rng: random.Random) -> str:
    """A fault: kill the driver and damage the newest checkpoint, so that it must go on from the one before."""
    if len(list((run.output / "run/state").glob("step-*"))) < 2:
        return ""
    killed = kill("driver", signal.SIGKILL)(run, rng)
    assert run.driver is not None
    run.driver.wait()
    states = sorted((run.output / "run/state").glob("step-*"))
    file = rng.choice(sorted(path for path in states[-1].rglob("*") if path.is_file() and path.stat().st_size))
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"{killed}, bit flipped in {file.relative_to(run.output)}"


FAULTS: dict[str, Callable[[SoakRun, random.Random], str]] = {
    "env killed": kill("env", signal.SIGKILL),
    "env hung": kill("env", signal.SIGSTOP),
    "env server killed": kill("env_server", signal.SIGKILL),
    "env server hung": kill("env_server", signal.SIGSTOP),
    "rollout actor killed": kill("rollout", signal.SIGKILL),
    "sampler killed": kill("sampler", signal.SIGKILL),
    "learner killed": kill("learner", signal.SIGKILL),
    "driver killed": kill("driver", signal.SIGKILL),
    "driver preempted": kill("driver", signal.SIGTERM),
    "driver interrupted": kill("driver", signal.SIGINT),
    "checkpoint damaged": flip_a_bit,
}
"""Name -> what is done; each returns the deed in words, or nothing when it was not possible just now."""
