"""GRPO whose rollouts run ahead of the learner: a run, and one whose driver is killed and goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from rlvla.config import GRPOConfig
from rlvla.durable.files import read_lines
from rlvla.run.ledger import balance
from tests.e2e.run import recipe, running, struck
from tests.e2e.test_resume import config, started, wait_until_killed

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NUM_STEPS = 6


def ahead(policy: Path, folder: Path, **keys: Any) -> dict[str, Any]:
    return config(policy, folder) | {"max_staleness": 2, "num_steps": NUM_STEPS, "max_waves": 1} | keys


def drawn(run: Path) -> list[str]:
    """The groups that steps took, in their order, as `suite/task/state/seed`."""
    lines = [json.loads(line) for line in (run / "ids.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(id_.rpartition("/")[0] for line in lines for id_ in line["sampled"]))


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    recipe("grpo", ahead(checkpoint, folder), folder)
    return folder / "run"


def balanced(run: Path) -> dict[str, int]:
    """The counts of a run that took all its steps and lost nothing."""
    assert len(read_lines(run / "metrics.jsonl")) == NUM_STEPS
    counts, problems = balance(run)
    assert problems == []
    return counts


def test_rollouts_run_ahead_and_nothing_is_lost(whole: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With a single wave and with three."""
    recipe("grpo", ahead(checkpoint, tmp_path, max_waves=3), tmp_path)
    for run in (whole, tmp_path / "run"):
        steps = [step for step in read_lines(run / "metrics.jsonl") if "staleness" in step]
        assert all(step["staleness"] <= step["staleness_max"] <= 2 for step in steps)
        assert any(step["staleness_max"] > 0 for step in steps)
        balanced(run)
    counts = balanced(whole)
    assert (counts["dropped"], counts["failed"]) == (0, 0)


def test_a_killed_driver_drops_what_was_played_ahead_and_draws_it_again(
    whole: Path, checkpoint: Path, tmp_path: Path
) -> None:
    broken = ahead(checkpoint, tmp_path)
    with running("grpo", broken, tmp_path, struck("add", "append_line", signal.SIGKILL, 4)) as run:
        wait_until_killed(run, started(run, tmp_path))
    recipe("grpo", broken, tmp_path)
    assert balanced(tmp_path / "run")["dropped"] > 0
    assert drawn(tmp_path / "run") == drawn(whole)
    assert GRPOConfig(max_staleness=2).loss.importance_cap  # on by default
