"""scripts/check_libero_expert.py: which states count as unseen, and its options."""

from __future__ import annotations

import pytest

pytest.importorskip("libero")

import check_libero_expert
from check_libero_expert import NUM_TUNED_STATES, unseen


def test_only_states_that_were_not_tuned_on_count_and_held_out_ones_apart() -> None:
    states = [*range(10), 40, 41]
    tasks = {
        name: {str(i): {"success": i not in failed, "env_steps": 9} for i in states}
        for name, failed in {"a": {0, 6}, "b": {41}}.items()
    }
    assert NUM_TUNED_STATES == 5
    only_tuned = {"c": {"0": {"success": True, "env_steps": 9}}}
    rows = unseen({"libero_goal": tasks, "libero_90": only_tuned}).splitlines()[2:]
    assert rows == [
        "| libero_goal | 5 to 9 | 2 | 9 of 10 | 90.0 % | 59.6 to 98.2 |",
        "| libero_goal | 40 to 41 | 2 | 3 of 4 | 75.0 % | 30.1 to 95.4 |",
    ]


def test_states_that_do_not_exist_are_refused() -> None:
    for states in ({"first_state": 45}, {"first_state": -1}, {"num_states": 0}):
        with pytest.raises(SystemExit, match=r"not among the states 0..49"):
            check_libero_expert.main(**states)
