"""Runs recipes as users do: in a process of their own, from a YAML file and flags."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
STRIKE = str(ROOT / "tests/killed.py")
_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a learner that ran in this process leaves in the environment; a recipe would take it for a launcher's."""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
"""What `accelerate launch` starts ranks with on GPUs; on a CPU it would start one, and pass no signal on."""


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


def recipe(name: str, config: dict[str, Any], folder: Path, *flags: str, launcher: Sequence[str] = ()) -> str:
    """Run a recipe with `config` written to a YAML file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return script(f"recipes/{name}.py", "--config", file, *flags, launcher=launcher)
