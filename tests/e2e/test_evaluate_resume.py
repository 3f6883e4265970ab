"""An evaluation that is killed goes on where it was: no trial lost, none played twice."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from rlvla.durable.trajectories import load_trajectories
from tests.e2e.run import recipe, running, wait_until

pytestmark = pytest.mark.long

NUM_TRIALS, NUM_SHOWN = 24, 6


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.is_file() else []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_evaluation_loses_and_repeats_no_trial(tiny_policy: Path, tmp_path: Path) -> None:
    config = {
        "model": str(tiny_policy),
        "output": str(tmp_path / "evaluate"),
        "env": {"tasks": ["press"]},
        "episode": {"temperature": 0.0, "max_turn_tokens": 192, "max_think_tokens": 16},
        "cluster": {"envs_per_actor": 2},
        "sampler": {"backend": "transformers"},
        "num_trials": NUM_TRIALS,
        "save_trajectories": NUM_SHOWN,
    }
    trials = tmp_path / "evaluate/trials.jsonl"
    with running("evaluate", config, tmp_path) as process:
        wait_until(lambda: len(lines(trials)) > 3, process, tmp_path)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=30)
    before = [line for line in lines(trials) if line.endswith("\n")]
    assert 3 < len(before) <= NUM_TRIALS
    shown = load_trajectories(tmp_path / "evaluate/trajectories.jsonl")
    logged = [json.loads(line)["init_state_id"] for line in before[1:]]
    # Those to show are on the disk before their trials are logged: a kill behind the last trial leaves them there.
    assert {t.task.init_state_id for t in shown} >= {*logged[: NUM_SHOWN // 2]}
    recipe("evaluate", config, tmp_path)
    after = lines(trials)
    assert after[: len(before)] == before
    states = [json.loads(line)["init_state_id"] for line in after[1:]]
    assert len(states) == len(set(states)) == NUM_TRIALS
    summary = json.loads((tmp_path / "evaluate/summary.json").read_text())
    assert summary["num_trials"] + summary["num_env_errors"] == NUM_TRIALS
    again = load_trajectories(tmp_path / "evaluate/trajectories.jsonl")
    assert {t.task.init_state_id for t in again} >= {*logged[: NUM_SHOWN // 2]}
    assert len({t.task.init_state_id for t in again}) == len(again) <= NUM_SHOWN
