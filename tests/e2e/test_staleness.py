"""GRPO whose rollouts run ahead of the learner: a run, and one whose driver is killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvla.config import GRPOConfig
from rlvla.durable.files import read_lines
from rlvla.run.ledger import balance
from tests.e2e.run import recipe, running, struck
from tests.e2e.test_resume import actors, config, wait_until_killed
from tests.learning import make_checkpoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NUM_STEPS = 6


def ahead(folder: Path, **keys: Any) -> dict[str, Any]:
    return config(folder) | {"max_staleness": 2, "num_steps": NUM_STEPS, "max_waves": 1} | keys


def drawn(run: Path) -> list[str]:
    """The groups that steps took, in their order, as `suite/task/state/seed`."""
    lines = [json.loads(line) for line in (run / "ids.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(id_.rpartition("/")[0] for line in lines for id_ in line["sampled"]))


@pytest.mark.parametrize("max_waves", [1, 3])
def test_rollouts_run_ahead_and_nothing_is_lost(tmp_path: Path, max_waves: int) -> None:
    make_checkpoint(tmp_path / "policy")
    recipe("grpo", ahead(tmp_path, max_waves=max_waves), tmp_path)
    steps = read_lines(tmp_path / "run/metrics.jsonl")
    assert len(steps) == NUM_STEPS
    assert all(step["staleness"] <= step["staleness_max"] <= 2 for step in steps if "staleness" in step)
    assert any(step.get("staleness_max", 0) > 0 for step in steps)
    counts, problems = balance(tmp_path / "run")
    assert problems == []
    assert (counts["dropped"], counts["failed"]) == (0, 0) or max_waves > 1


def test_a_killed_driver_drops_what_was_played_ahead_and_draws_it_again(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "policy")
    recipe("grpo", ahead(tmp_path, output=str(tmp_path / "whole")), tmp_path)
    with running("grpo", ahead(tmp_path), tmp_path, struck("add", "append_line", 9, 4)) as run:
        wait_until_killed(run, actors(run, tmp_path))
    recipe("grpo", ahead(tmp_path), tmp_path)
    counts, problems = balance(tmp_path / "run")
    assert problems == []
    assert counts["dropped"] > 0
    assert len(read_lines(tmp_path / "run/metrics.jsonl")) == NUM_STEPS
    assert drawn(tmp_path / "run") == drawn(tmp_path / "whole")
    assert GRPOConfig(max_staleness=2).loss.importance_cap  # on by default
