"""The paper's table row out of evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import table
from rlvla.run.metrics import wilson_interval


def evaluation(folder: Path, suite: str, successes: int, num_trials: int, **protocol: Any) -> Path:
    low, high = wilson_interval(successes, num_trials)
    said = {"model": "run/checkpoint", "env.id": "rlvla/Libero-v0", "env_kwargs": {"suite": suite}, "split": "official"}
    said |= {"content of model": "12ab", "episode.mode": "zoom", "episode.think_every": 1}
    summary = {
        "rate": successes / num_trials,
        "low": low,
        "high": high,
        "num_trials": num_trials,
        "protocol": {**said, "is_official": True, **protocol},
    }
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_row_pools_its_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        evaluation(tmp_path / "a", "libero_spatial", 490, 500),
        evaluation(tmp_path / "b", "libero_10", 5, 20, is_official=False, split="evaluate"),
    ]
    table.main(tuple(folders), name="ours")
    head, _, row = capsys.readouterr().out.strip().splitlines()
    assert head == "| policy | libero_spatial | libero_10 (evaluate, not official) | all |"
    low, high = wilson_interval(495, 520)
    assert row.startswith("| ours | 98.0 [96.4, 98.9] of 500 | 25.0 [")
    assert row.endswith(f"| {100 * 495 / 520:.1f} [{100 * low:.1f}, {100 * high:.1f}] of 520 |")


def test_a_column_says_how_the_policy_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        evaluation(tmp_path / "a", "libero_10", 1, 2, is_official=False, **{"episode.mode": "act"}),
        evaluation(
            tmp_path / "b", "libero_10", 1, 2, is_official=False, split="evaluate", **{"episode.think_every": 3}
        ),
    ]
    table.main(tuple(folders))
    head = capsys.readouterr().out.splitlines()[0]
    assert (
        head
        == "| policy | libero_10 (not official, mode act) | libero_10 (evaluate, not official, think_every 3) | all |"
    )


def test_two_policies_are_not_one_row(tmp_path: Path) -> None:
    """Nor are those that lay under one name one after the other."""
    folders = [
        evaluation(tmp_path / "a", "libero_spatial", 1, 2),
        evaluation(tmp_path / "b", "libero_10", 1, 2, **{"content of model": "34cd"}),
    ]
    with pytest.raises(SystemExit, match=r"2: run/checkpoint \(12ab\), run/checkpoint \(34cd\)"):
        table.main(tuple(folders))


def test_an_evaluation_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "a", "libero_10", 1, 2)
    file = folder / "summary.json"
    file.write_text(file.read_text().replace("env.id", "env"))
    with pytest.raises(SystemExit, match=rf"{folder} was written by an earlier version: run recipes/evaluate.py again"):
        table.main((folder,))


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"{tmp_path} holds no evaluation"):
        table.main((tmp_path,))
    with pytest.raises(SystemExit, match="name the folders"):
        table.main(())
