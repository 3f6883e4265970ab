"""A third party's env, from its own file to a policy that has learned: annotate, SFT, GRPO, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvla.durable.files import read_lines
from rlvla_envs.spec import check_env
from tests.e2e import bandit
from tests.e2e.run import recipe

ENV = {"id": "lab/Bandit-v0", "imports": ["bandit"]}
CLUSTER = {"envs_per_actor": 16, "threads": 1}
EPISODE = {"max_turn_tokens": 128, "max_think_tokens": 8}


def test_it_keeps_the_contract() -> None:
    check_env(bandit.Bandit())


@pytest.mark.timeout(900)
def test_grpo_learns_what_the_cold_start_does_not_know(tmp_path: Path) -> None:
    recipe(
        "annotate",
        {"output": f"{tmp_path}/demos", "env": ENV, "num_episodes": 400, "chunk_length": 1}
        | {"expert": "bandit:play", "annotator": "bandit:annotate", "checks": {"names": ["markup"]}},
        tmp_path,
    )
    tiny = {"hidden_size": 64, "num_layers": 2, "vision_layers": 1, "image_size": 32}
    recipe(
        "sft",
        {"dataset": f"{tmp_path}/demos", "output": f"{tmp_path}/sft", "tiny": tiny, "num_bins": 8}
        | {"gripper_dim": None, "num_steps": 60, "batch_size": 32}
        | {"learner": {"lr": 3e-3, "micro_batch_rows": 32, "schedule": "cosine"}},
        tmp_path,
    )
    recipe(
        "grpo",
        {"model": f"{tmp_path}/sft/checkpoint", "output": f"{tmp_path}/grpo", "env": ENV, "cluster": CLUSTER}
        | {"episode": EPISODE, "num_steps": 40, "groups_per_step": 4, "group_size": 8, "minibatch_trajectories": 32}
        | {"learner": {"lr": 1e-3, "micro_batch_rows": 32}, "loss": {"kl_coef": 0.0}},
        tmp_path,
    )
    success = [line["success"] for line in read_lines(tmp_path / "grpo/metrics.jsonl")]
    assert sum(success[:3]) / 3 < 0.4
    assert sum(success[-3:]) / 3 > 0.8
    recipe(
        "evaluate",
        {"model": f"{tmp_path}/grpo/checkpoint", "output": f"{tmp_path}/evaluate", "env": ENV}
        | {"cluster": CLUSTER, "num_trials": 20, "episode": {**EPISODE, "temperature": 0.0}},
        tmp_path,
    )
    summary = json.loads((tmp_path / "evaluate/summary.json").read_text())
    assert summary["rate"] > 0.8
    assert summary["low"] < summary["rate"] <= summary["high"]
    assert summary["tasks"]["push"]["num_trials"] == 20
