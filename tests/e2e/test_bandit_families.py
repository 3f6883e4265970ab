"""Families without words from demonstrations to a policy that has learned by GRPO, on a third party's env."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvla.durable.files import read_lines
from tests.e2e.run import recipe
from tests.e2e.test_bandit import CLUSTER, ENV

SMALL: dict[str, Any] = {
    "chain_of_action": {
        **{"conv_channels": [8, 16], "hidden_size": 32, "num_heads": 2, "ffn_size": 64},
        **{"encoder_layers": 1, "decoder_layers": 1},
    },
    "acot": {
        **{
            "image_size": 32,
            "vision_layers": 1,
            "vision_width": 32,
            "vision_mlp": 64,
            "layers": 1,
            "implicit_group": 1,
        },
        **{"width": 32, "mlp": 64, "head_width": 8, "expert_width": 32, "expert_mlp": 64},
        **{"action_horizon": 1, "reference_horizon": 1, "reference_stride": 1},
    },
}
EPISODES: dict[str, Any] = {
    "chain_of_action": {"chain": {"std": 0.7}},
    "acot": {"flow": {"num_steps": 3, "level": 0.7}},
}
"""Noise that brings success to a quarter of the episodes of a policy that knows nothing."""


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Actions at random, without a thought."""
    folder = tmp_path_factory.mktemp("bandit")
    recipe(
        "annotate",
        {"output": f"{folder}/demos", "env": ENV, "num_episodes": 200, "chunk_length": 1, "expert": "bandit:play"}
        | {"key_frames": {"last": True}},
        folder,
    )
    return folder / "demos"


@pytest.fixture(scope="module")
def starts(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cold start of each family."""
    return {family: cold_start(family, demonstrations, tmp_path_factory.mktemp(family)) for family in SMALL}


def cold_start(family: str, demonstrations: Path, folder: Path) -> Path:
    recipe(
        "sft",
        {"dataset": str(demonstrations), "output": f"{folder}/sft", "family": family, family: SMALL[family]}
        | {"num_steps": 60, "batch_size": 32, "learner": {"lr": 1e-3, "micro_batch_rows": 32}},
        folder,
    )
    return folder / "sft/checkpoint"


def grpo(model: Path, family: str, folder: Path, num_steps: int, weight: float = 1.0) -> list[float]:
    """Success of each step."""
    recipe(
        "grpo",
        {"model": str(model), "output": f"{folder}/grpo", "env": ENV, "cluster": CLUSTER}
        | {"episode": {"mode": "act", "tools": {}, **EPISODES[family]}, "sampler": {"backend": "batched"}}
        | {"reward": [{"fn": "success", "weight": weight}], "loss": {"kl_coef": 0.001, "kl_estimator": "exact"}}
        | {"num_steps": num_steps, "groups_per_step": 4, "group_size": 8, "minibatch_trajectories": 32}
        | {"learner": {"lr": 1e-3, "micro_batch_rows": 32}, "max_futile_steps": 0},
        folder,
    )
    return [line["success"] for line in read_lines(folder / "grpo/metrics.jsonl")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", SMALL)
def test_grpo_learns_what_the_cold_start_does_not_know(family: str, starts: dict[str, Path], tmp_path: Path) -> None:
    success = grpo(starts[family], family, tmp_path, num_steps=30)
    assert sum(success[:3]) / 3 < 0.5
    assert sum(success[-3:]) / 3 > 0.8
    mismatch = [line["mismatch_kl"] for line in read_lines(tmp_path / "grpo/metrics.jsonl")]
    assert max(mismatch) < 1e-6
    recipe(
        "evaluate",
        {"model": f"{tmp_path}/grpo/checkpoint", "output": f"{tmp_path}/evaluate", "env": ENV, "cluster": CLUSTER}
        | {"episode": {"mode": "act", "tools": {}, "temperature": 0.0}, "sampler": {"backend": "batched"}}
        | {"num_trials": 20},
        tmp_path,
    )
    summary = json.loads((tmp_path / "evaluate/summary.json").read_text())
    assert summary["rate"] > 0.8


@pytest.mark.timeout(900)
def test_a_reward_of_the_other_sign_lowers_success(starts: dict[str, Path], tmp_path: Path) -> None:
    success = grpo(starts["chain_of_action"], "chain_of_action", tmp_path, num_steps=8, weight=-1.0)
    assert sum(success[-3:]) < sum(success[:3])
