"""scripts/check_annotations.py on a few episodes: honest annotations hold, and a fault is only what its name says."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import check_annotations
from planted_faults import FAULTS, MAX_COVERAGE, Episode, coverage
from rlvla.config import CheckConfig
from rlvla_envs.spec import scene_of

FIELDS = {
    "wrong subject": {"subject"},
    "flipped gripper": {"gripper", "next_gripper"},
    "box off the object": {"looks"},
    "goal change": {"subject"},
    "repeated thought": {"thoughts"},
}
"""What a fault of each class may change."""


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return list(check_annotations.episodes(4))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_only_what_its_name_says(episodes: list[Episode], fault: str) -> None:
    changed, num_touched = set[str](), set[int]()
    for seed in range(20):
        episode = episodes[seed % len(episodes)]
        lies = FAULTS[fault](episode, np.random.default_rng(seed))
        for i, lie in lies.items():
            honest, said = asdict(episode.honest[i]), asdict(lie)
            changed |= {name for name in honest if honest[name] != said[name]}
            scene = scene_of(episode.take.decisions[i])
            assert lie.subject in {o.name for o in scene.objects}
            subject = next(o for o in scene.objects if o.name == scene.subject)
            covered = [coverage(box, subject.box) for _, box in lie.looks]
            assert covered == [] or (covered[0] < MAX_COVERAGE) == (fault == "box off the object")
        num_touched.add(len(lies))
        if fault == "repeated thought":
            assert len({lie.thoughts[-1] for lie in lies.values()}) == 1
    assert changed == FIELDS[fault]
    assert (max(num_touched) > 1) == (fault in ("goal change", "repeated thought"))


def test_the_numbers_are_printed_and_written_and_decide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out/result.json"
    assert check_annotations.main(4, output=path) == 0
    result = json.loads(path.read_text())
    assert result[check_annotations.HONEST]["caught"] == 0
    assert all(result[name]["num"] == result[name]["caught"] == 4 for name in FAULTS)
    assert result["flipped gripper"]["checks"] == {"gripper": 4}
    assert "4 of    4  100.0%" in capsys.readouterr().out
    names = tuple(name for name in CheckConfig().names if name != "gripper")
    monkeypatch.setattr(check_annotations, "CheckConfig", partial(CheckConfig, names=names))
    assert check_annotations.main(2) == 1  # a fault is missed
    monkeypatch.setattr(check_annotations, "CheckConfig", partial(CheckConfig, max_repetition=1, num_words=(30, 40)))
    assert check_annotations.main(2) == 1  # honest ones are refused
