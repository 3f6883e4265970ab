"""Evaluation: the summary of hand-made trajectories, and states that are not held out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from rlvla.config import EnvConfig, EpisodeConfig, EvaluateConfig
from rlvla.evaluation import _protocol, _tasks, evaluate, line
from rlvla.prompt import note_trained


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


def test_a_policy_that_was_trained_on_official_states_is_refused(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    env = EnvConfig(id="lab/Leaky-v0", imports=("leaky_env",))
    model = shutil.copytree(tiny_policy, tmp_path / "trained")
    note_trained(model, "leaky")
    cfg = EvaluateConfig(model=model, output=tmp_path / "out", env=env, num_trials=2, split="official")
    with pytest.raises(ValueError, match=r"trained was trained on 2 of the official .*allow_trained_states"):
        evaluate(cfg)


def test_the_protocol_says_what_the_env_has_to_say_of_the_split(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def protocol(split: Literal["evaluate", "official"], num_trials: int) -> dict[str, Any]:
        cfg = EvaluateConfig(
            model=tiny_policy,
            output=tmp_path / "out",
            env=EnvConfig(id="lab/Noted-v0", imports=("leaky_env",)),
            num_trials=num_trials,
            split=split,
            episode=EpisodeConfig(temperature=0),
        )
        names, _, said = _tasks(cfg)
        return _protocol(cfg, list(names.values()), said)

    whole, part, held_out = protocol("official", 4), protocol("official", 3), protocol("evaluate", 4)
    assert whole["split_note"] == part["split_note"] == "the table stands 1 cm further left"
    assert (whole["is_official"], part["is_official"], held_out["is_official"]) == (True, False, False)
    assert "split_note" not in held_out
