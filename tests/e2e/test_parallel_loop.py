"""The loop with action chunks that are decoded in one step: annotate, SFT, GRPO, evaluate; with either sampler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvla.metrics import read_metrics
from rlvla.storage import load_trajectories
from rlvla.types import SegmentKind
from tests.e2e.run import recipe

ENV = {"id": "lab/Bandit-v0", "imports": ["bandit"]}
CLUSTER = {"envs_per_actor": 16, "threads": 1}
EPISODE = {"max_turn_tokens": 128, "max_think_tokens": 8}
CHUNK = 6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("prefix_attention", "sampler"), [("causal", "vllm"), ("bidirectional", "transformers")], ids=["causal", "prefix"]
)
def test_a_chunk_is_learned_sampled_and_scored_alike(tmp_path: Path, prefix_attention: str, sampler: str) -> None:
    recipe(
        "annotate",
        {"output": f"{tmp_path}/demos", "env": ENV, "num_episodes": 200, "chunk_length": CHUNK}
        | {"expert": "bandit:play", "annotator": "bandit:annotate", "checks": {"names": ["markup"]}},
        tmp_path,
    )
    recipe(
        "sft",
        {"dataset": f"{tmp_path}/demos", "output": f"{tmp_path}/sft", "num_bins": 8, "gripper_dim": None}
        | {"tiny": {"hidden_size": 64, "num_layers": 2, "vision_layers": 1, "image_size": 32}}
        | {"action_decoding": "parallel", "prefix_attention": prefix_attention, "num_steps": 60, "batch_size": 32}
        | {"env": ENV, "num_trials": 2 * (sampler == "transformers")}  # chosen by itself, there is no key for it
        | {"learner": {"lr": 3e-3, "micro_batch_rows": 32, "schedule": "cosine"}},
        tmp_path,
    )
    recipe(
        "grpo",
        {"model": f"{tmp_path}/sft/checkpoint", "output": f"{tmp_path}/grpo", "env": ENV, "cluster": CLUSTER}
        | {"episode": EPISODE, "num_steps": 3, "groups_per_step": 4, "group_size": 8, "minibatch_trajectories": 32}
        | {"learner": {"lr": 1e-3, "micro_batch_rows": 32}, "loss": {"kl_coef": 0.01}}
        | {"sampler": {"backend": sampler}},
        tmp_path,
    )
    lines = read_metrics(tmp_path / "grpo/metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:  # also behind weight syncs
        assert line["format_rate"] > 0.5
        assert abs(line["mismatch_kl"]) < 1e-5
    recipe(
        "evaluate",
        {"model": f"{tmp_path}/grpo/checkpoint", "output": f"{tmp_path}/evaluate", "env": ENV}
        | {"cluster": CLUSTER, "num_trials": 8, "episode": {**EPISODE, "temperature": 0.0}}
        | {"sampler": {"backend": sampler}},
        tmp_path,
    )
    assert json.loads((tmp_path / "evaluate/summary.json").read_text())["format_rate"] > 0.5
    trajectories = load_trajectories(tmp_path / "evaluate/trajectories.jsonl")
    (act,) = next(t for t in trajectories if t.turns[0].actions.size).turns[0].of_kind(SegmentKind.ACT)
    assert act.end - act.start == 1 + CHUNK  # <act> and the chunk; </act> is put there by us
