"""Runs recipes as users do: in a process of their own, from a YAML file and flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def script(path: str, *arguments: str | Path) -> str:
    """Run a script of the repository; returns what it printed; an AssertionError carries that when it failed."""
    paths = [ROOT, ROOT / "envs", ROOT / "reward", Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / path), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"{path} {arguments}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def recipe(name: str, config: dict[str, Any], folder: Path, *flags: str) -> str:
    """Run a recipe with `config` written to a YAML file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return script(f"recipes/{name}.py", "--config", file, *flags)
