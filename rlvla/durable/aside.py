"""Work of which the caller waits for the beginning alone: the rest is done in a thread while it goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any


class Aside:
    """One piece of work at a time, a generator: up to its `yield` it runs where it is begun, from there on aside."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._rest: list[Future[Any]] = []
        """What is left to do: of one piece of work, or nothing."""

    def begin(self, work: Iterator[None]) -> None:
        """Begin work, once the one before has ended; raises what went wrong with either so far."""
        self.finish()
        next(work)
        self._rest = [self._pool.submit(deque, work, 0)]

    def wait(self, timeout_s: float) -> None:
        """Until nothing is left to do, but no longer."""
        wait(self._rest, timeout_s)

    def check(self) -> None:
        """Raise what went wrong, where something did; waits for nothing."""
        if all(rest.done() for rest in self._rest):
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is left to do; raises, once, what went wrong."""
        rest, self._rest = self._rest, []
        for each in rest:
            each.result()
