"""scripts/benchmark.py for real, at its smallest: one group, one repeat, a policy with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.e2e.run import ROOT, script


def test_it_measures_everything_and_writes_it_down(tiny_policy: Path, tmp_path: Path) -> None:
    file = tmp_path / "results/benchmark.json"
    config = tmp_path / "grpo.yaml"
    settings = yaml.safe_load((ROOT / "recipes/configs/grpo_tiny_tabletop.yaml").read_text())
    small = {"group_size": 4, "cluster": {"envs_per_actor": 4, "threads": 1}}
    config.write_text(yaml.safe_dump(settings | small))
    printed = script(
        "scripts/benchmark.py",
        *("--model", tiny_policy, "--config", config, "--num-trajectories", "4", "--repeats", "1", "--seed", "3"),
        *("--json", file),
    )
    result = json.loads(file.read_text())
    for ratio in ("rollout_vs_lockstep", "learner_vs_padded", "learner_vs_longest"):
        assert result[ratio] > 0
        assert f"{result[ratio]:.2f}x" in printed
    assert 0 < result["sync_fraction"] < 1
    assert result["trl"] or result["trl_reason"]
    assert len(result["lockstep"]["seconds"]) == 1
    assert result["seed"] == 3
    assert result["machine"]["cpu"]
    assert result["packages"]["torch"]
    assert result["targets"].keys() == {"rollout_vs_lockstep", "learner_vs_padded", "sync_fraction"}
    # Both rollouts played the same episodes with the same policy, so that neither got through them by giving up.
    assert result["rollout"]["decisions_per_trajectory"] >= 1
    assert result["lockstep"]["decisions_per_trajectory"] >= 1
