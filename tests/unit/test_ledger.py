from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlvla import Group
from rlvla.ledger import Ledger, trajectory_id
from tests.examples import TASK, trajectory


def group(seed: int) -> Group:
    task = replace(TASK, seed=seed)
    return Group(task=task, trajectories=(trajectory(task=task), trajectory(task=task)))


def test_a_line_a_step_names_every_trajectory(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(0, sampled=[group(1), group(2)], learned=[group(2)], resampled=[(group(1).task, 1)])
    ledger.add(1, sampled=[group(3)], learned=[group(1), group(3)], resampled=[])
    lines = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    ids = {seed: [trajectory_id(group(seed).task, member) for member in (0, 1)] for seed in (1, 2, 3)}
    assert ids[1][1] == f"{TASK.suite}/{TASK.task_id}/{TASK.init_state_id}/1/1"
    assert lines[0] == {"step": 0, "sampled": ids[1] + ids[2], "learned": ids[2], "resampled": [ids[1][1]]}
    assert lines[1] == {"step": 1, "sampled": ids[3], "learned": ids[1] + ids[3], "resampled": []}
    with (tmp_path / "ids.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "sam\0\0\n')
    with pytest.warns(UserWarning, match="cannot be read"):
        ledger.rewind(1)
    assert [json.loads(line)["step"] for line in (tmp_path / "ids.jsonl").read_text().splitlines()] == [0]
