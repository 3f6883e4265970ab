"""The assumed speeds are those that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvla.plan.speed import ENV_STEPS_PER_S

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_simulators_are_as_fast_as_the_recorded_benchmarks_say() -> None:
    tabletop = json.loads((RESULTS / "benchmark.json").read_text())["simulator"]["env_steps_per_s"]
    libero = json.loads((RESULTS / "libero_benchmark.json").read_text())["env_steps_per_s"]["ours_one_camera"]
    measured = {"rlvla/Tabletop-v0": tabletop, "rlvla/Libero-v0": libero}
    assert pytest.approx(measured, abs=0.05) == ENV_STEPS_PER_S
