"""Evaluation: the summary of hand-made trajectories, and states that are not held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlvla.config import EnvConfig, EvaluateConfig
from rlvla.evaluation import evaluate, line, success_rate, summarise
from rlvla.metrics import wilson_interval
from rlvla.testing import TASK, make_trajectory
from rlvla.types import EndReason


def test_success_counts_what_did_not_crash() -> None:
    ends = [EndReason.SUCCESS] * 3 + [EndReason.FAILURE] + [EndReason.ENV_ERROR]
    result = success_rate([make_trajectory(end=end) for end in ends])
    assert result["rate"] == 0.75
    assert (result["num_trials"], result["num_env_errors"]) == (4, 1)
    assert (result["low"], result["high"]) == wilson_interval(3, 4)


def test_the_summary_is_by_task_and_in_all() -> None:
    other = replace(TASK, task_id=1)
    trajectories = [make_trajectory(), make_trajectory(task=other, end=EndReason.FAILURE)]
    summary = summarise({0: "press", 1: "pick"}, trajectories)
    assert summary["rate"] == 0.5
    assert (summary["tasks"]["press"]["rate"], summary["tasks"]["pick"]["rate"]) == (1.0, 0.0)
    assert summary["format_rate"] == 1.0
    assert summary["tokens_per_decision"] == 5
    assert summary["ends"]["failure"] == 0.5


def test_the_line_to_read() -> None:
    result = {"rate": 0.615, "low": 0.546, "high": 0.68, "num_trials": 200}
    assert line("press", result).split() == ["press", "61.5", "%", "[54.6,", "68.0]", "of", "200"]


def test_a_missing_checkpoint_and_too_many_trials_are_named(tmp_path: Path, tiny_policy: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        evaluate(EvaluateConfig(model=tmp_path, output=tmp_path / "out"))
    with pytest.raises(ValueError, match="num_trials is 5000"):
        evaluate(
            EvaluateConfig(model=tiny_policy, output=tmp_path / "out", env=EnvConfig(tasks=("press",)), num_trials=5000)
        )


def test_states_that_are_trained_on_are_refused(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    env = EnvConfig(id="lab/Leaky-v0", imports=("leaky_env",))
    with pytest.raises(ValueError, match=r"initial states \[0, 1\] are in the train split too"):
        evaluate(EvaluateConfig(model=tiny_policy, output=tmp_path / "out", env=env, num_trials=2))
