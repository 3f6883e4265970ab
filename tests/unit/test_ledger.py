from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlvla import EndReason, Group
from rlvla.run.ledger import Ledger, balance, trajectory_id
from tests.examples import TASK, trajectory


def group(seed: int) -> Group:
    task = replace(TASK, seed=seed)
    return Group(task=task, trajectories=(trajectory(task=task), trajectory(task=task)))


def test_a_line_a_step_names_every_trajectory(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    crashed = replace(group(2).trajectories[1], end=EndReason.ENV_ERROR)
    failed = replace(group(2), trajectories=(group(2).trajectories[0], crashed))
    ledger.add(0, sampled=[group(1), failed], learned=[group(2)], resampled=[(group(1).task, 1)])
    ledger.add(1, sampled=[group(3)], learned=[group(1), group(3)], resampled=[])
    lines = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    ids = {seed: [trajectory_id(group(seed).task, member) for member in (0, 1)] for seed in (1, 2, 3)}
    assert ids[1][1] == f"{TASK.suite}/{TASK.task_id}/{TASK.init_state_id}/1/1"
    assert lines[0] == {"step": 0, "sampled": ids[1] + ids[2], "learned": ids[2], "resampled": [ids[1][1]], "failed": 1}
    assert lines[1] == {"step": 1, "sampled": ids[3], "learned": ids[1] + ids[3], "resampled": [], "failed": 0}
    with (tmp_path / "ids.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "sam\0\0\n')
    with pytest.warns(UserWarning, match="cannot be read"):
        ledger.rewind(1)
    assert [json.loads(line)["step"] for line in (tmp_path / "ids.jsonl").read_text().splitlines()] == [0]


def started(step: int, batch: int, *ids: str) -> dict[str, Any]:
    return {"step": step, "batch": batch, "ids": [*ids]}


def ended(step: int, *sampled: str, **others: Any) -> dict[str, Any]:
    return {"step": step, "sampled": [*sampled], "learned": [*sampled], "resampled": [], "failed": 0} | others


STARTED = [
    started(0, 0, "a", "b"),
    started(0, 1, "c"),  # in the place of one that failed
    started(1, 0, "d", "e"),  # cut short in its second batch
    started(1, 1, "f"),
    started(1, 0, "d", "e"),  # done, and lost with the state behind it
    started(2, 0, "g", "h"),
    started(1, 0, "d", "e"),
    started(2, 0, "g", "h"),
    started(3, 0, "i", "j"),  # not done yet
]
ENDED = [
    ended(0, "a", "b", "c", failed=1, resampled=["b", "b"], learned=["a", "b"]),
    ended(1, "d", "e", learned=["c", "d", "e"]),
    ended(2, "g", "h", failed=2, learned=[]),
]


def write(folder: Path, name: str, lines: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_balance_of_a_run_that_was_cut_short_and_rewound(tmp_path: Path) -> None:
    assert balance(tmp_path) == ({"started": 0, "failed": 0, "finished": 0, "dropped": 0}, [])
    write(tmp_path, "started.jsonl", STARTED)
    write(tmp_path, "ids.jsonl", ENDED)
    assert balance(tmp_path) == ({"started": 16, "failed": 3, "finished": 4, "dropped": 9}, [])


AHEAD_STARTED = [
    started(0, 0, "a", "b", "c", "d"),  # two of them for the next step
    started(1, 0, "e", "f"),
    started(2, 0, "g", "h"),
    started(2, 0, "e", "f", "g", "h") | {"resumed": True},  # what was being played was dropped
    started(3, 0, "i"),
]
AHEAD_ENDED = [
    ended(0, "a", "b", outstanding=["c", "d"]),
    ended(1, "c", "d", outstanding=["e", "f"]),
    ended(2, "e", "f", outstanding=["g", "h"]),
    ended(3, "g", "h", outstanding=["i"]),
]


def test_the_balance_of_a_run_whose_rollouts_are_ahead(tmp_path: Path) -> None:
    write(tmp_path, "started.jsonl", AHEAD_STARTED)
    write(tmp_path, "ids.jsonl", AHEAD_ENDED)
    assert balance(tmp_path) == ({"started": 13, "failed": 0, "finished": 8, "dropped": 5}, [])
    write(tmp_path, "ids.jsonl", swapped(AHEAD_ENDED, 1, outstanding=["e"]))
    assert "step 1 started, and did not sample: f" in balance(tmp_path)[1]
    write(tmp_path, "ids.jsonl", swapped(AHEAD_ENDED, 3, sampled=["g"]))
    assert "step 3 started, and did not sample: h" in balance(tmp_path)[1]


def test_what_a_resumed_run_did_not_start_again_is_no_part_of_a_later_step(tmp_path: Path) -> None:
    """A refill before the kill, and no crash behind it: the last step starts nothing then."""
    begun = [
        started(0, 0, "a", "b"),
        started(1, 0, "c"),
        started(2, 0, "c1"),
        started(1, 0, "b", "c") | {"resumed": True},
    ]
    write(tmp_path, "started.jsonl", begun)
    done = [ended(0, "a", outstanding=["b"]), ended(1, "b", outstanding=["c"]), ended(2, "c")]
    write(tmp_path, "ids.jsonl", done)
    assert balance(tmp_path)[1] == []


def test_a_ledger_of_rollouts_ahead_balances_whatever_is_cut_short(tmp_path: Path) -> None:
    def play(ledger: Ledger, step: int, *new: int, ends: int) -> None:
        ledger.start(step, [(group(seed).task, member) for seed in new for member in (0, 1)])
        ledger.add(step, sampled=[group(ends)], learned=[group(ends)], resampled=[])

    ledger = Ledger(tmp_path)
    ledger.rewind(0)
    play(ledger, 0, 1, 2, ends=1)
    play(ledger, 1, 3, ends=2)
    ledger = Ledger(tmp_path)
    ledger.rewind(1)
    play(ledger, 1, 2, 3, ends=2)
    play(ledger, 2, 4, ends=3)
    assert balance(tmp_path) == ({"started": 12, "failed": 0, "finished": 6, "dropped": 6}, [])


def swapped(lines: list[dict[str, Any]], number: int, **values: Any) -> list[dict[str, Any]]:
    return [line | values if i == number else line for i, line in enumerate(lines)]


@pytest.mark.parametrize(
    ("begun", "done", "problem"),
    [
        (STARTED, swapped(ENDED, 1, sampled=["d"]), "step 1 started, and did not sample: e"),
        (swapped(STARTED, 7, ids=["g"]), ENDED, "step 2 sampled, and had not started: h"),
        (STARTED, [*ENDED, ended(3, "i", "j"), ended(4, "k")], "step 4 sampled, and had not started: k"),
        (STARTED, swapped(ENDED, 2, sampled=["g", "h", "h"]), "step 2 sampled, and had not started: h"),
        (swapped(STARTED, 7, ids=["g", "h", "h"]), ENDED, "step 2 started twice in one attempt: h"),
        (swapped(STARTED, 7, ids=["g", "a"]), swapped(ENDED, 2, sampled=["g", "a"]), "sampled twice: a"),
        (STARTED, swapped(ENDED, 1, learned=["a", "d"]), "learned from twice: a"),
        (STARTED, swapped(ENDED, 1, learned=["d", "x", "y"]), "learned from, and not sampled: x and 1 more"),
        (STARTED, swapped(ENDED, 1, resampled=["a"]), "step 1 began again what it had not started: a"),
        (STARTED, swapped(ENDED, 1, failed=3), "3 of 2 trajectories failed in step 1"),
        (STARTED, [ENDED[0], ENDED[2]], "steps are missing or doubled in ids.jsonl"),
        (STARTED, [*ENDED, ENDED[2]], "steps are missing or doubled in ids.jsonl"),
        ([], ENDED, "step 0 sampled, and had not started: a and 2 more"),
    ],
)  # fmt: skip
def test_a_balance_that_is_forged_is_found_out(
    tmp_path: Path, begun: list[dict[str, Any]], done: list[dict[str, Any]], problem: str
) -> None:
    write(tmp_path, "started.jsonl", begun)
    write(tmp_path, "ids.jsonl", done)
    assert problem in balance(tmp_path)[1]


def test_every_start_of_a_step_is_written_down(tmp_path: Path) -> None:
    """Before it is played; half a line that a kill has left does not spoil the next one."""
    ledger, ids = Ledger(tmp_path), [trajectory_id(TASK, member) for member in range(3)]
    ledger.rewind(0)
    ledger.start(0, [(TASK, 0), (TASK, 1)])
    with (tmp_path / "started.jsonl").open("a") as file:
        file.write('{"step": 0, "ba')
    with pytest.warns(UserWarning, match=r"started\.jsonl: what stands behind line 1 cannot be read"):
        ledger.rewind(0)
    ledger = Ledger(tmp_path)
    ledger.rewind(0)
    ledger.start(0, [(TASK, 0), (TASK, 1)])
    ledger.start(0, [(TASK, 2)])
    lines = [json.loads(line) for line in (tmp_path / "started.jsonl").read_text().splitlines()]
    resumed = started(0, 0, *ids[:2]) | {"resumed": True}
    assert lines == [resumed, resumed, started(0, 1, ids[2])]
    assert balance(tmp_path) == ({"started": 5, "failed": 0, "finished": 0, "dropped": 5}, [])
