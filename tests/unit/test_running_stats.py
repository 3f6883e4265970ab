"""Statistics in one pass: those of numpy, however the rows come."""

from __future__ import annotations

import numpy as np
import pytest

from rlvla.data import running_stats
from rlvla.data.running_stats import RunningStats


def of_numpy(rows: np.ndarray) -> dict[str, np.ndarray]:
    values = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    moments = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
    return {**moments, "q01": q01, "q99": q99, "count": np.array([len(values)])}


def of_batches(rows: np.ndarray, sizes: list[int]) -> dict[str, list]:
    stats = RunningStats()
    for batch in np.split(rows, np.cumsum(sizes)):
        stats.add(batch)
    return stats.summary()


@pytest.mark.parametrize("sizes", [[], [1], [1] * 50, [7, 30, 2]])
def test_it_is_numpys_result_however_the_rows_come(sizes: list[int]) -> None:
    scales = np.array([1, 1e-3, 1e4])
    rows = (np.random.default_rng(0).normal(size=(60, 5, 3)) * scales + 1e3 * scales).astype(np.float32)
    result, expected = of_batches(rows, sizes), of_numpy(rows)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("period", [2, 5, 8])
def test_many_rows_are_thinned_evenly_and_counted_exactly(monkeypatch: pytest.MonkeyPatch, period: int) -> None:
    monkeypatch.setattr(running_stats, "MAX_KEPT_ROWS", 1000)
    # A value for each of the tasks that take turns: every 2nd, 4th, ... row would miss the last.
    rows = (np.arange(20_000) % period).astype(np.float32)[:, None]
    result = of_batches(rows, [1, 3, 5000, 2])
    for name in ("mean", "std", "min", "max", "count"):
        assert result[name] == pytest.approx(of_numpy(rows)[name], rel=1e-12), name
    assert (result["q01"], result["q99"]) == ([0], [period - 1])


def test_memory_is_bounded_and_the_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_stats, "MAX_KEPT_ROWS", 100)
    rows = np.random.default_rng(0).normal(size=(5000, 2, 1)).astype(np.float32)
    one, many = of_batches(rows, []), of_batches(rows, [13] * 300)
    assert (one["q01"], one["q99"]) == (many["q01"], many["q99"])
    assert one["q99"] == pytest.approx([2.33], abs=0.5)
