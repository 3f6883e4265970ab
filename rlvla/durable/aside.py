"""Work of which the caller waits for the beginning alone: the rest is done in a thread while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait


class Aside:
    """One piece of work at a time, a generator: up to its `yield` it runs where it is begun, from there on aside."""

    def __init__(self) -> None:
        self._rest: Future[None] = _over()

    def begin(self, work: Iterator[None]) -> None:
        """Begin work, once the one before has ended; raises what went wrong with either so far."""
        self.finish()
        next(work)
        self._rest = Future()
        threading.Thread(target=_do, args=(work, self._rest), name="aside", daemon=True).start()

    def wait(self, timeout_s: float) -> None:
        """Until nothing is left to do, but no longer."""
        wait([self._rest], timeout_s)

    def check(self) -> None:
        """Raise what went wrong, where something did; waits for nothing."""
        if self._rest.done():
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is left to do; raises, once, what went wrong."""
        rest, self._rest = self._rest, _over()
        rest.result()


def _over() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _do(work: Iterator[None], rest: Future[None]) -> None:
    try:
        for _ in work:
            pass
    except Exception as error:  # for whoever waits
        rest.set_exception(error)
    else:
        rest.set_result(None)
