"""scripts/benchmark/annotate.py at its smallest: what it measures is there, and more requests in flight help."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import annotate


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(annotate, "EPISODE_STEPS", 10)
    monkeypatch.setattr(annotate, "CURVE_STEPS", 20)
    monkeypatch.setattr(annotate, "MANY", 2)
    output, chart = tmp_path / "result.json", tmp_path / "chart.svg"
    sizes = {"sides": (16,), "frames": 10, "repeats": 1, "episodes": 1}
    curve = {"concurrency": (1, 2, 8), "most": 2, "latency": 0.05, "seconds": 1.0}
    annotate.main(**sizes, **curve, output=output, chart=chart)

    result = json.loads(output.read_text())
    overhead = result["overhead"]["16"]
    assert overhead["num_frames"] == 10
    assert overhead["cpu_ms"] > 0
    assert result["bar_met"] == {"16": overhead["cpu_ms"] < 2}

    first, second, third = result["curve"]["points"]
    assert [point["ideal"] for point in (first, second, third)] == pytest.approx([20, 40, 40])
    assert all(0 < point["share"] < 1 for point in (first, second, third))  # the server keeps its word
    assert second["frames_per_s"] > 1.3 * first["frames_per_s"]

    assert [point["num_frames"] for point in result["memory"]] == [10, 20]
    assert result["memory_growth"] < 1.5
    assert "bar: CPU below 2" in capsys.readouterr().out
    assert ElementTree.parse(chart).getroot().tag.endswith("svg")


def test_sizes_are_positive() -> None:
    with pytest.raises(SystemExit, match="all numbers must be positive"):
        annotate.main(concurrency=(0,))
