"""scripts/benchmark/staleness.py: the runs that it asks the recipe for, what it makes of their metrics, and its env."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import staleness
from rlvla.config import GRPOConfig, load
from rlvla.durable.files import append_line
from rlvla.rollout.env_server import make_env

NUM_STEPS, LAST = 5, 4  # the last step of a run with a staleness of 1 does not count


def steps(ahead: int) -> list[dict[str, float]]:
    """Metrics of a run: those ahead wait a third as long; what does not count is far off."""
    counted = {"num_trajectories": 8, "success": 0.5, "time/rollout_s": 3.0 / (1 + 2 * ahead), "time/learn_s": 1.0}
    return [counted if 2 <= i < LAST else dict.fromkeys(counted, 1e6) for i in range(NUM_STEPS)]


def test_the_runs_differ_in_their_staleness_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[GRPOConfig] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> None:
        assert str(Path(staleness.__file__).parent) in env["PYTHONPATH"].split(os.pathsep)  # there lies the env
        cfg = load(GRPOConfig, command[2:])
        ran.append(cfg)
        cfg.output.mkdir()
        for step in steps(cfg.max_staleness):
            append_line(cfg.output / "metrics.jsonl", step)

    (tmp_path / "config.json").touch()  # as a checkpoint has one
    monkeypatch.setattr(staleness, "subprocess", SimpleNamespace(run=run))
    flags: dict[str, Any] = {"model": tmp_path, "num_steps": NUM_STEPS, "groups_per_step": 1, "max_staleness": (0, 1)}
    staleness.main(**flags, wait_s=0.2, output=tmp_path / "result.json")
    assert [(cfg.max_staleness, cfg.num_steps, cfg.groups_per_step) for cfg in ran] == [(0, 5, 1), (1, 5, 1)]
    for cfg in ran:
        assert (cfg.model, cfg.minibatch_trajectories, cfg.cluster.envs_per_actor) == (tmp_path, 8, 16)
    result = json.loads((tmp_path / "result.json").read_text())
    assert [line["trajectories_per_h"] for line in result["runs"]] == [7200, 14400]
    assert (result["async_vs_sync_waiting_env"], result["runs"][1]["success"]) == (2.0, 0.5)
    with pytest.raises(SystemExit, match="--num-steps: 3 leave no step to measure"):
        staleness.main(**{**flags, "num_steps": 3})

    env: Any = make_env(ran[1].env)
    env.reset(options={"init_state_id": 0})
    started, used = time.monotonic(), time.thread_time()
    env.step_chunk(np.zeros((1, 4), np.float32))
    assert (time.monotonic() - started) - (time.thread_time() - used) >= 0.19  # what it waits takes no CPU
    env.close()
