"""The whole loop on the built-in simulator, at the smallest size: real MuJoCo, vLLM, Ray, DeepSpeed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rlvla.durable.files import CACHE, read_lines
from rlvla.durable.trajectories import load_trajectories
from rlvla.run.identity import of_policy
from tests.e2e.run import TORCHRUN, recipe, script

pytestmark = pytest.mark.timeout(900)

ENV = {"id": "rlvla/Tabletop-v0", "tasks": ["press"], "kwargs": {"zoom_source": "render"}}
EPISODE = {"max_turn_tokens": 192, "max_think_tokens": 16, "max_tool_calls": 2}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    template = {"annotator": "rlvla_envs.tabletop.annotate:annotate", "checks": {"names": ["markup"], "looks": [0, 2]}}
    recipe("annotate", {"output": f"{folder}/demos", "env": ENV, "num_episodes": 64, **template}, folder)
    return folder / "demos"


def sft_config(demos: Path, output: Path, **learner: Any) -> dict[str, Any]:
    return {
        "dataset": str(demos),
        "output": str(output),
        "tiny": {"hidden_size": 64, "num_layers": 2, "vision_layers": 1},
        "num_bins": 16,
        "num_steps": 4,
        "batch_size": 8,
        "validate_every": 2,
        "validation_share": 0.01,  # an episode, so that of two ranks one has nothing to validate on
        "save_every": 2,
        "learner": {"lr": 1e-3, "warmup_steps": 1, "schedule": "cosine", "micro_batch_rows": 8, **learner},
    }


@pytest.fixture(scope="module")
def sft(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    recipe("sft", {**sft_config(demos, folder / "run"), "env": ENV, "num_trials": 2}, folder)
    return folder / "run"


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    return load_file(checkpoint / "model.safetensors")


def resumed(run: Path, aside: Path, step: int = 2) -> Path:
    """A run folder that holds nothing but the state of `step`, as if the run had been killed right after it."""
    aside.mkdir(parents=True)
    shutil.copytree(run / f"state/step-{step:06d}", aside / f"state/step-{step:06d}")
    return aside


def test_sft_writes_a_policy_and_what_it_can_do(sft: Path) -> None:
    lines = read_lines(sft / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [("validation_loss" in line) for line in lines] == [False, True, False, True]
    summary = json.loads((sft / "summary.json").read_text())
    assert summary["evaluation"]["num_trials"] == 2
    assert summary["evaluation"]["protocol"]["content of model"] == of_policy(sft / "checkpoint")
    assert 0 <= summary["evaluation"]["format_rate"] <= 1
    assert (sft / "config.yaml").is_file()
    assert (sft / "provenance.json").is_file()


def test_sft_resumed_equals_sft_unbroken(demos: Path, sft: Path, tmp_path: Path) -> None:
    again = resumed(sft, tmp_path / "again")
    recipe("sft", {**sft_config(demos, again), "env": ENV}, tmp_path)
    for name, weight in weights(sft / "checkpoint").items():
        assert np.array_equal(weight, weights(again / "checkpoint")[name]), name
    assert [line["step"] for line in read_lines(again / "metrics.jsonl")] == [2, 3]


def test_sft_micro_batches_and_zero_leave_the_update_alone(demos: Path, sft: Path, tmp_path: Path) -> None:
    recipe("sft", sft_config(demos, tmp_path / "run", micro_batch_rows=4, zero_stage=2), tmp_path)
    for name, weight in weights(sft / "checkpoint").items():
        np.testing.assert_allclose(weights(tmp_path / "run/checkpoint")[name], weight, atol=2e-5, err_msg=name)


def test_sft_on_two_ranks_gives_the_same_update(demos: Path, sft: Path, tmp_path: Path) -> None:
    recipe("sft", sft_config(demos, tmp_path / "run", zero_stage=3), tmp_path, launcher=TORCHRUN)
    assert len(list((tmp_path / "run/state/step-000004").glob("rank_*.pt"))) == 2
    alone, together = read_lines(sft / "metrics.jsonl"), read_lines(tmp_path / "run/metrics.jsonl")
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], abs=1e-5)
    assert together[-1]["validation_loss"] == pytest.approx(alone[-1]["validation_loss"], abs=1e-5)
    for name, weight in weights(sft / "checkpoint").items():
        np.testing.assert_allclose(weights(tmp_path / "run/checkpoint")[name], weight, atol=2e-5, err_msg=name)


def test_two_ranks_read_each_row_once_an_epoch(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both start when the rows are not unpacked yet."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    reads = tmp_path / "reads"
    reads.mkdir()
    config = sft_config(demos, tmp_path / "run") | {"num_steps": 12, "validation_share": 0.25, "validate_every": 12}
    launcher = (*TORCHRUN, str(Path(__file__).with_name("reads.py")), str(reads))
    recipe("sft", config | {"save_every": 0}, tmp_path, launcher=launcher)
    read = [[int(row) for row in (reads / str(rank)).read_text().split()] for rank in (0, 1)]
    # A row of each rank in turn is the order of the 12 batches.
    dealt = [row for pair in zip(*(rows[:48] for rows in read), strict=True) for row in pair]
    once = set(dealt)
    assert 12 * 8 // len(once) >= 2
    for start in range(0, 12 * 8 - len(once), len(once)):
        assert set(dealt[start : start + len(once)]) == once
    validated = [rows[48:] for rows in read]  # once for their lengths, and once for the loss
    assert all(sorted(rows) == sorted([*set(rows)] * 2) for rows in validated)
    assert not set(validated[0]) & set(validated[1])
    num_rows = json.loads((demos / "meta/info.json").read_text())["total_frames"]
    assert sorted(once | {*validated[0], *validated[1]}) == [*range(num_rows)]
    assert len([*(tmp_path / "cache").rglob("*.arrow")]) == 1


def grpo_config(sft: Path, output: Path) -> dict[str, Any]:
    return {
        "model": str(sft / "checkpoint"),
        "output": str(output),
        "env": ENV,
        "episode": EPISODE,
        # One episode at a time: what vLLM batches together, hence every bit, is then the same in every run.
        "cluster": {"envs_per_actor": 1, "threads": 1},
        "reward": [
            {"fn": "success"},
            {"fn": "format", "weight": 0.1},
            {"fn": f"{Path(__file__).parent}/rewards.py:odd_tokens"},
        ],
        "learner": {"lr": 1e-4, "micro_batch_rows": 8},
        "num_steps": 4,
        "groups_per_step": 1,
        "group_size": 3,
        "max_waves": 2,
        "minibatch_trajectories": 2,
        "save_every": 2,
        "log": {"tensorboard": True},
    }


@pytest.fixture(scope="module")
def grpo(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grpo")
    recipe("grpo", grpo_config(sft, folder / "run"), folder)
    return folder / "run"


def test_grpo_logs_every_step_and_leaves_a_policy(grpo: Path, sft: Path) -> None:
    lines = read_lines(grpo / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert all(value is None or math.isfinite(value) for value in line.values())
        assert {"success", "reward/format", "reward/odd_tokens", "format_rate"} <= line.keys()
        assert {"response_tokens", "tool_calls_per_turn"} <= line.keys()
        assert {"time/rollout_s", "time/learn_s", "time/sync_s", "env_steps_per_s", "trajectories_per_s"} <= line.keys()
    learned = [line for line in lines if line["num_rows"]]
    assert len(learned) == 4
    assert max(line["mismatch_kl"] for line in learned) < 1e-6  # sampler and learner agree, also after weight syncs
    before, after = weights(sft / "checkpoint"), weights(grpo / "checkpoint")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert list((grpo / "tensorboard").iterdir())


def test_grpo_resumed_equals_grpo_unbroken(grpo: Path, sft: Path, tmp_path: Path) -> None:
    again = resumed(grpo, tmp_path / "again")
    recipe("grpo", grpo_config(sft, again), tmp_path)
    kept = ("success", "reward", "response_tokens", "num_turns")
    unbroken = [{k: line.get(k) for k in kept} for line in read_lines(grpo / "metrics.jsonl")[2:]]
    assert [{k: line.get(k) for k in kept} for line in read_lines(again / "metrics.jsonl")] == unbroken
    for name, weight in weights(grpo / "checkpoint").items():
        assert np.array_equal(weight, weights(again / "checkpoint")[name]), name


def test_evaluation_and_report(grpo: Path, tmp_path: Path) -> None:
    config = {
        "model": str(grpo / "checkpoint"),
        "output": str(tmp_path / "evaluate"),
        "env": ENV,
        "episode": {**EPISODE, "temperature": 0.0, "mode": "think", "think_every": 2},
        "cluster": {"envs_per_actor": 4, "threads": 1},
        "num_trials": 6,
        "save_trajectories": 2,
    }
    printed = recipe("evaluate", config, tmp_path)
    assert "press" in printed
    summary = json.loads((tmp_path / "evaluate/summary.json").read_text())
    protocol = summary["protocol"]
    assert (summary["num_trials"], protocol["episode.mode"], protocol["episode.think_every"]) == (6, "think", 2)
    assert summary["tool_calls_per_turn"] == 0
    trajectories = load_trajectories(tmp_path / "evaluate/trajectories.jsonl")
    assert {t.task.init_state_id for t in trajectories} <= set(range(1_000_000, 1_000_006))
    script("scripts/report.py", grpo, tmp_path / "evaluate", "--output", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "press the" in page
