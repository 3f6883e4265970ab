"""The benchmark of action decoding runs, and a chunk takes one engine step instead of one a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actions import CALL_TOKENS, THOUGHT_TOKENS, WAYS
from tests.e2e.run import script


@pytest.mark.slow
def test_a_chunk_takes_one_step(tmp_path: Path) -> None:
    flags = ("--hidden-size", "64", "--num-layers", "1", "--concurrency", "1", "2", "--rounds", "2")
    printed = script("scripts/benchmark/actions.py", *flags, "--output", tmp_path / "result.json")
    assert "speed-up" in printed
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["sampler"], row["requests"], row["kind"]) for row in rows] == [
        *(("vllm", number, kind) for number in (1, 2) for kind in ("chunk", "act", "think", "zoom")),
        *(("transformers", 1, kind) for kind in ("act", "think", "zoom")),
    ]
    steps = {(row["kind"], way): row[way]["steps"] for row in rows[:4] for way in WAYS}
    assert steps["chunk", "parallel"] == steps["act", "parallel"] == rows[4]["parallel"]["steps"] == 1
    assert steps["chunk", "autoregressive"] == steps["act", "autoregressive"] == 56
    assert steps["think", "parallel"] == THOUGHT_TOKENS + 1
    assert steps["zoom", "autoregressive"] == CALL_TOKENS + THOUGHT_TOKENS + 56
    for row in rows:
        assert row["speed_up"] == row["autoregressive"]["p50_ms"] / row["parallel"]["p50_ms"]
