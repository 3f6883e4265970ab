"""The wheel as `pip install` delivers it: outside the checkout, with the oldest and the newest packages it admits."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.e2e.run import ROOT

pytestmark = pytest.mark.long

DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
USE = """
import pathlib, sys
import rlvla, rlvla_envs, rlvla_reward
from rlvla.config import GRPOConfig, load
from rlvla.durable.trajectories import save_trajectories
from rlvla.types import EndReason, TaskSpec, Trajectory

assert all(module.__file__.startswith(sys.prefix) for module in (rlvla, rlvla_envs, rlvla_reward))
rlvla_envs.check_env("rlvla/Tabletop-v0")
cfg = load(GRPOConfig, ["--config", sys.argv[1]])
task = TaskSpec(suite="tabletop", task_id=0, init_state_id=1, seed=2, instruction="press the red pad")
won = Trajectory(task=task, turns=(), end=EndReason.SUCCESS, num_env_steps=3)
save_trajectories(pathlib.Path("trajectories.jsonl"), [won])
print(cfg.env.id)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """In a process that knows nothing of the checkout; returns what it printed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    return next(folder.glob("rlvla-*.whl"))


def oldest(requirement: str) -> str:
    """`name==version` of its lower bound."""
    parsed = Requirement(requirement)
    [bound] = [part.version for part in parsed.specifier if part.operator == ">="]
    return f"{parsed.name}=={bound}"


@pytest.mark.parametrize("pins", [[oldest(r) for r in DEPENDENCIES], []], ids=["oldest", "newest"])
def test_the_wheel_works_with_what_its_metadata_admits(wheel: Path, tmp_path: Path, pins: list[str]) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, *pins, cwd=tmp_path)
    config = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml"
    assert run(python, "-c", USE, config, cwd=tmp_path).strip() == "rlvla/Tabletop-v0"
    scored = run(python, ROOT / "scripts/score.py", "trajectories.jsonl", "--config", config, cwd=tmp_path)
    assert scored.splitlines()[-1].split()[:3] == ["mean", "of", "1"]
    assert scored.splitlines()[-1].split()[-1] == "1"  # success
