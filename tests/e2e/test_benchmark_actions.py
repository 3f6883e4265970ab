"""The benchmark of action decoding runs, and a chunk takes one engine step instead of one a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark_decisions import CALL_TOKENS, NUM_LOOKS, THOUGHT_TOKENS
from tests.e2e.run import script

WAYS = ("parallel", "autoregressive")


@pytest.mark.slow
def test_a_chunk_takes_one_step(tmp_path: Path) -> None:
    flags = ("--hidden-size", "64", "--num-layers", "1", "--concurrency", "1", "2", "--rounds", "2")
    printed = script("scripts/benchmark_actions.py", *flags, "--output", tmp_path / "result.json")
    assert "speed-up" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["rows"]
    assert [row["requests"] for row in rows] == [1, 2]
    for row in rows:
        assert row["parallel"]["steps"] == 1
        assert row["autoregressive"]["steps"] == 56
        assert row["speed_up"] == row["autoregressive"]["ms"] / row["parallel"]["ms"]
    steps = {(row["mode"], way): row[way]["steps"] for row in result["decisions"][:3] for way in WAYS}
    assert steps["act", "parallel"] == 1
    assert steps["act", "autoregressive"] == 56
    assert steps["think", "parallel"] == THOUGHT_TOKENS + 1
    assert steps["zoom", "autoregressive"] == CALL_TOKENS + THOUGHT_TOKENS + 56
    assert [(row["sampler"], row["mode"], row["requests"]) for row in result["decisions"]] == [
        (sampler, mode, n)
        for sampler, n in (("vllm", 1), ("vllm", 2), ("transformers", 1))
        for mode in sorted(NUM_LOOKS)
    ]
