"""The benchmark of action decoding runs, and a chunk takes one engine step instead of one a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.run import script


@pytest.mark.slow
def test_a_chunk_takes_one_step(tmp_path: Path) -> None:
    flags = ("--hidden-size", "64", "--num-layers", "1", "--concurrency", "1", "2", "--rounds", "2")
    printed = script("scripts/benchmark_actions.py", *flags, "--output", tmp_path / "result.json")
    assert "speed-up" in printed
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["requests"] for row in rows] == [1, 2]
    for row in rows:
        assert row["parallel"]["steps"] == 1
        assert row["autoregressive"]["steps"] == 56
        assert row["speed_up"] == row["autoregressive"]["ms"] / row["parallel"]["ms"]
