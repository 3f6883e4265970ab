"""Runs recipes as users do: in a process of their own, from a YAML file and flags."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
STRIKE = str(ROOT / "tests/killed.py")
_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a learner that ran in this process leaves in the environment; a recipe would take it for a launcher's."""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
"""What `accelerate launch` starts ranks with on GPUs; on a CPU it would start one, and pass no signal on."""


Process = subprocess.Popen[bytes]
LIMIT_S = 200
"""What a signal has not ended by then it does not end; how long a busy machine takes says nothing."""
TEE = ("env", "--default-signal=INT", "tee")
"""Also where whoever started the tests has SIGINT ignored, as a shell does in the background."""


def struck(caller: str, function: str, number: int, count: int = 1) -> tuple[str, ...]:
    """A launcher: the script gets a signal when `caller` calls `function`, in its main thread, for the n-th time."""
    return STRIKE, caller, function, str(count), str(int(number))


def noted(caller: str, function: str, file: Path) -> tuple[str, ...]:
    """A launcher: the file gets a byte whenever `caller` calls `function`."""
    return STRIKE, caller, function, "0", str(file)


def environment() -> dict[str, str]:
    """That of a process of its own, which finds our packages and no learner's rank."""
    paths = [ROOT, ROOT / "envs", ROOT / "reward", Path(__file__).parent]
    inherited = {name: value for name, value in os.environ.items() if name not in _RANK}
    return {**inherited, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}


def script(path: str, *arguments: str | Path, launcher: Sequence[str] = ()) -> str:
    """Run a script of the repository; returns what it printed; an AssertionError carries that when it failed."""
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / path), *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"{path} {arguments}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def ranks(module: str, world: int, *arguments: str | Path) -> None:
    """Run the ranks of a learner to their end: `python -m module RANK WORLD MASTER ...`."""
    command = [sys.executable, "-W", "ignore", "-m", module]
    rest = [str(world), free_address(), *map(str, arguments)]
    started = [subprocess.Popen([*command, str(rank), *rest], cwd=ROOT, env=environment()) for rank in range(world)]
    try:
        assert [rank.wait(timeout=300) for rank in started] == [0] * world
    finally:
        for rank in started:
            rank.kill()
            rank.wait()


def free_address() -> str:
    """`host:port` on this machine, free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def recipe(name: str, config: dict[str, Any], folder: Path, *flags: str, launcher: Sequence[str] = ()) -> str:
    """Run a recipe with `config` written to a YAML file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return script(f"recipes/{name}.py", "--config", file, *flags, launcher=launcher)


@contextmanager
def running(
    name: str, config: dict[str, Any], folder: Path, launcher: Sequence[str] = (), *, with_tee: bool = False
) -> Iterator[Process]:
    """A recipe in a group of processes of its own, as a terminal would start it; or `recipe 2>&1 | tee log`."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, *launcher, str(ROOT / f"recipes/{name}.py"), "--config", str(file)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE if with_tee else log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        started = [process]
        if process.stdout is not None:
            started += [subprocess.Popen(TEE, stdin=process.stdout, stdout=log, process_group=process.pid)]
            process.stdout.close()
        try:
            yield process
        finally:
            for each in started:
                each.kill()
                each.wait()


def wait_until(reached: Callable[[], bool], process: Process, folder: Path) -> None:
    """While the process of `running` lives."""
    deadline = time.monotonic() + 400
    while not reached():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
        time.sleep(0.05)


def actors(root: int, name: str = r"\w+Actor") -> list[psutil.Process]:
    """The processes of Ray's actors below a process, of one class or of all, by the titles that Ray gives them."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended a moment ago
            found += [process for title in process.cmdline()[:1] if re.match(f"ray::{name}", title)]
    return found


def kill(process: psutil.Process) -> None:
    """SIGKILL, and wait until the process is gone."""
    process.kill()
    process.wait(30)


def end(process: Process, send: Callable[[], None]) -> int:
    """The exit code; none of what the process had started outlives it."""
    family = psutil.Process(process.pid).children(recursive=True)
    send()
    code = process.wait(timeout=LIMIT_S)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    return code
