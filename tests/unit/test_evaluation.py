"""Evaluation: the summary of hand-made trajectories, and states that are not held out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlvla.config import EnvConfig, EpisodeConfig, EvaluateConfig
from rlvla.evaluation import _protocol, _tasks, evaluate, line
from rlvla.prompt import note_trained
from rlvla.testing import make_trajectory
from rlvla.trials import TrialLog, to_trial

LAB: dict[str, Any] = {"id": "lab/Noted-v0", "imports": ("leaky_env",)}


def protocol(cfg: EvaluateConfig) -> dict[str, Any]:
    """What the trials of an evaluation would say that they depend on."""
    names, _, said = _tasks(cfg)
    return _protocol(cfg, list(names.values()), said)


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


def test_the_result_of_an_earlier_checkpoint_is_not_that_of_a_later_one_in_its_place(
    tmp_path: Path, tiny_policy: Path
) -> None:
    model = shutil.copytree(tiny_policy, tmp_path / "policy")
    cfg = EvaluateConfig(model=model, output=tmp_path / "out", env=EnvConfig(tasks=("press",)), num_trials=1)
    with TrialLog(tmp_path / "out/trials.jsonl", protocol(cfg)) as log:
        (task,) = _tasks(cfg)[1]
        log.add(to_trial(make_trajectory(task=task)))
    assert evaluate(cfg)["rate"] == 1.0  # all is there, and nothing to play
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"trials of another evaluation \(checkpoint was '\w+', is '\w+'\): name"):
        evaluate(cfg)


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

    cfg = EvaluateConfig(
        model=tiny_policy,
        output=tmp_path / "out",
        env=EnvConfig(**LAB),
        num_trials=4,
        split="official",
        episode=EpisodeConfig(temperature=0),
    )
    whole, part, held_out = (protocol(c) for c in (cfg, replace(cfg, num_trials=3), replace(cfg, split="evaluate")))
    assert whole["split_note"] == part["split_note"] == "the table stands 1 cm further left"
    assert (whole["is_official"], part["is_official"], held_out["is_official"]) == (True, False, False)
    assert "split_note" not in held_out


def test_the_protocol_says_what_the_env_was_made_with_and_can_be_gone_on_with(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    env = EnvConfig(**LAB, kwargs={"settle_steps": 3})
    said = protocol(EvaluateConfig(model=tiny_policy, output=tmp_path, env=env, num_trials=4))
    given, added = {"settle_steps": 3, "table": "low"}, {"cameras": ["front"], "folder": "scenes", "judge": "function"}
    assert said["env_kwargs"] == given | added
    assert said["max_env_steps"] == {"peek": 7}
    for _ in range(2):  # written, and compared with what was read back
        TrialLog(tmp_path / "trials.jsonl", said).__exit__()


@pytest.mark.libero
def test_the_protocol_on_libero_says_what_was_seen_and_for_how_long(
    libero_assets: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    env = EnvConfig(id="rlvla/Libero-v0", kwargs={"suite": "libero_10", "assets": str(libero_assets)})
    said = protocol(EvaluateConfig(model=tiny_policy, output=tmp_path, env=env, num_trials=50, split="official"))
    expected = {"settle_steps": 10, "center_crop": True, "view_size": 256, "cameras": ["agentview"]}
    assert {name: said["env_kwargs"][name] for name in expected} == expected
    assert list(said["max_env_steps"].values()) == [520] * 10
