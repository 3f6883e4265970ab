"""Statistics of numbers that are seen once, in bounded memory: those of `meta/stats.json`."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_KEPT_ROWS = 2**16
_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
"""The golden ratio less one, times 2**64."""


class RunningStats:
    """Mean, standard deviation, minimum, maximum, 1 % and 99 % quantiles of the last axis' components.

    The quantiles are exact up to `MAX_KEPT_ROWS` rows. Beyond that they are those of one row in two, in four, and so
    on, so that between half of `MAX_KEPT_ROWS` and all of it are kept. Row i stays while the fraction of i times the
    golden ratio is below 1/2, 1/4 ...: as even as every second or fourth row, and like them the same in every run,
    but without a period that might be that of the tasks. All else is exact, whatever the number of rows: float64,
    batches merged by Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), equation 2.1.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0
        """Sum of squared deviations from the mean."""
        self._min: Any = np.inf
        self._max: Any = -np.inf
        self._num_rows = 0
        self._num_kept = 0
        self._kept = np.empty(0, np.float32)
        self._places = np.empty(MAX_KEPT_ROWS, np.uint64)
        """Of each kept row: the fraction, times 2**64."""
        self._last_place = np.uint64(2**64 - 1)

    def add(self, rows: np.ndarray) -> None:
        """Count rows in.

        Args:
            rows: [n, ..., D] float32, n at least 1, of one shape from call to call but for n; a row of shape
                [K, A], as a chunk of actions is, counts as K values, and is kept or dropped as a whole.
        """
        values = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
        before, self._count = self._count, self._count + len(values)
        mean = values.mean(0)
        delta = mean - self._mean
        self._mean = self._mean + delta * (len(values) / self._count)
        self._squares = self._squares + ((values - mean) ** 2).sum(0) + delta**2 * (before * len(values) / self._count)
        self._min = np.minimum(self._min, values.min(0))
        self._max = np.maximum(self._max, values.max(0))
        self._keep(rows)

    def summary(self) -> dict[str, list[Any]]:
        """The statistics by name, each a list over D; `count` is how many values they are of."""
        kept = self._kept[: self._num_kept].astype(np.float64)
        q01, q99 = np.quantile(kept.reshape(-1, kept.shape[-1]), (0.01, 0.99), axis=0)
        std = np.sqrt(self._squares / self._count)
        moments = {"mean": self._mean, "std": std, "min": self._min, "max": self._max, "q01": q01, "q99": q99}
        return {name: value.tolist() for name, value in moments.items()} | {"count": [self._count]}

    def _keep(self, rows: np.ndarray) -> None:
        if not self._num_rows:
            self._kept = np.empty((MAX_KEPT_ROWS, *rows.shape[1:]), np.float32)  # takes memory only as it fills
        numbers = np.arange(self._num_rows, self._num_rows + len(rows), dtype=np.uint64)
        self._num_rows += len(rows)
        places = numbers * _GOLDEN_RATIO  # modulo 2**64: this takes the fraction
        while self._num_kept + np.count_nonzero(places <= self._last_place) > MAX_KEPT_ROWS:
            self._last_place >>= np.uint64(1)
            stays = np.flatnonzero(self._places[: self._num_kept] <= self._last_place)
            self._num_kept = len(stays)
            self._kept[: self._num_kept] = self._kept[stays]
            self._places[: self._num_kept] = self._places[stays]
        chosen = places <= self._last_place
        end = self._num_kept + np.count_nonzero(chosen)
        self._kept[self._num_kept : end] = rows[chosen]
        self._places[self._num_kept : end] = places[chosen]
        self._num_kept = end
