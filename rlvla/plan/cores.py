"""CPU cores that several things share."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Any


class Cores:
    """Equal shares for all. Time runs in work done by a job that was always there, so that ends keep their order."""

    def __init__(self, cores: float) -> None:
        self._cores, self._done, self._now = cores, 0.0, 0.0
        self._ends: list[tuple[float, int, Any]] = []
        self._count = itertools.count()

    def _rate(self) -> float:
        return min(1.0, self._cores / max(1, len(self._ends)))

    def _advance(self, now: float) -> None:
        self._done += (now - self._now) * self._rate()
        self._now = now

    def add(self, now: float, seconds: float, process: Any) -> None:
        """Begin a job of so many CPU seconds."""
        self._advance(now)
        heapq.heappush(self._ends, (self._done + seconds, next(self._count), process))

    def next_end(self) -> float:
        """When the next job ends, if none comes before that."""
        if not self._ends:
            return math.inf
        return self._now + max(0.0, self._ends[0][0] - self._done) / self._rate()

    def pop(self, now: float) -> Any:
        """The process whose job ends now."""
        self._advance(now)
        return heapq.heappop(self._ends)[2]
