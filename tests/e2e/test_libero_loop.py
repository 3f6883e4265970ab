"""The whole loop on real LIBERO, at the smallest size: expert, SFT, GRPO, evaluation, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvla.durable.files import read_lines
from rlvla.durable.trajectories import load_trajectories
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import SegmentKind
from tests.e2e.run import recipe, script

pytestmark = [pytest.mark.libero, pytest.mark.slow, pytest.mark.timeout(900)]

TASKS = [
    "pick_up_the_alphabet_soup_and_place_it_in_the_basket",
    "pick_up_the_salad_dressing_and_place_it_in_the_basket",
]
ENV = {
    "id": "rlvla/Libero-v0",
    "kwargs": {"suite": "libero_object", "view_size": 64, "reflections": False, "max_scenes": 2},
    "tasks": TASKS,
}
EPISODE = {"max_turn_tokens": 384, "max_think_tokens": 48, "max_tool_calls": 2}
CHUNK = 8


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libero")
    config = {
        "output": f"{folder}/demos",
        "env": ENV,
        "num_episodes": 2,
        "chunk_length": CHUNK,
        "expert": "rlvla_envs.libero.record:play",
        "annotator": "rlvla_envs.libero.annotate:annotate",
    }
    recipe("annotate", config, folder)
    return folder / "demos"


@pytest.fixture(scope="module")
def sft(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libero_sft")
    config = {
        "dataset": str(demos),
        "output": str(folder / "run"),
        "tiny": {"hidden_size": 64, "num_layers": 2, "vision_layers": 1},
        "num_bins": 32,
        "num_steps": 4,
        "batch_size": 8,
        "validate_every": 4,
        "learner": {"lr": 2e-3, "micro_batch_rows": 8},
        "env": ENV,
    }
    recipe("sft", config, folder)
    return folder / "run"


def test_sft_grpo_evaluation_and_report(sft: Path, tmp_path: Path) -> None:
    checkpoint = sft / "checkpoint"
    processor = PolicyProcessor.load(checkpoint)
    assert processor.codec.chunk_shape == (CHUNK, 7)
    assert processor.settings.trained_suites == ("libero_object",)
    grpo: dict[str, Any] = {
        "model": str(checkpoint),
        "output": str(tmp_path / "grpo"),
        "env": ENV,
        "episode": EPISODE,
        "cluster": {"envs_per_actor": 2, "threads": 1},
        "reward": [{"fn": "success"}, {"fn": "format", "weight": 0.1}],
        "learner": {"lr": 1e-4, "micro_batch_rows": 8},
        "num_steps": 1,
        "max_futile_steps": 0,  # four steps of a cold start do not teach how to act
        "groups_per_step": 2,
        "group_size": 2,
        "minibatch_trajectories": 4,
    }
    recipe("grpo", grpo, tmp_path)
    (line,) = read_lines(tmp_path / "grpo/metrics.jsonl")
    assert (line["num_trajectories"], line["end/env_error"]) == (4, 0)
    for trajectory in load_trajectories(tmp_path / "grpo/trajectories.jsonl"):
        for turn in trajectory.turns:
            prompt = turn.segments[0]
            image_ids = turn.token_ids[prompt.start : prompt.end] == processor.vocabulary.placeholder_id
            assert image_ids.sum() == (64 // 8 // 2) ** 2  # one camera
            assert len(turn.images) == 1 + sum(not r.text for r in turn.of_kind(SegmentKind.TOOL_RESULT))
    evaluation = {
        "model": str(tmp_path / "grpo/checkpoint"),
        "output": str(tmp_path / "evaluate"),
        "env": ENV,
        "episode": {**EPISODE, "temperature": 0.0},
        "cluster": {"envs_per_actor": 2, "threads": 1},
        "num_trials": 1,
    }
    recipe("evaluate", evaluation, tmp_path)
    summary = json.loads((tmp_path / "evaluate/summary.json").read_text())
    assert (summary["num_trials"], summary["num_env_errors"]) == (2, 0)
    assert {"robosuite", "hf-libero", "mujoco"} <= summary["packages"].keys()
    script("scripts/report.py", tmp_path / "grpo", tmp_path / "evaluate", "--output", tmp_path / "report.html")
    assert "alphabet soup" in (tmp_path / "report.html").read_text()


def test_official_states_are_refused_to_a_policy_that_was_trained_on_them(sft: Path, tmp_path: Path) -> None:
    config = {"model": str(sft / "checkpoint"), "output": str(tmp_path / "official"), "env": ENV, "split": "official"}
    with pytest.raises(AssertionError, match="trained on 40 of the official initial states"):
        recipe("evaluate", {**config, "num_trials": 50}, tmp_path)
