"""Ctrl-C and SIGTERM: the first one ends a run in good order, within `GRACE_S`; a second one ends it at once.

The process ends with 128 + the number of the first signal, as shells report it: 130 after SIGINT, 143 after SIGTERM.
What it has started on this machine ends with it. Give SIGTERM to the recipe's process alone: what reaches Ray's, too,
leaves nobody to ask for a state.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 25.0
"""From the first signal to the end at the latest: Slurm and Kubernetes kill 30 s after SIGTERM."""


class Interrupts:
    """A context manager around a run, in the main thread.

    A signal raises KeyboardInterrupt where the main thread is, until `defer`. Where that, or any other error after a
    signal, leaves this context, all descendants of the process are killed; KeyboardInterrupt becomes the exit code,
    other errors go on. A run that completes after a signal ends as if there had been none. Of `recipe 2>&1 | tee log`
    Ctrl-C ends `tee`, too: what is said from then on is lost, and breaks nothing.

    Args:
        grace_s: seconds after which a run that has not ended is given up, with whatever it was writing.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._number = 0
        """Of the first signal, as the handler knows it."""
        self._watched = 0
        """As the watch does."""
        self._is_deferred = False

    def __enter__(self) -> Interrupts:
        self._streams: tuple[Any, Any] = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = map(_Output, self._streams)  # type: ignore[assignment]
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # SystemExit: a library, as Ray does while it starts, had put a handler of its own in the place of ours.
        # It exits with the signal's number, perhaps before the watch has seen the signal.
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code in SIGNALS:
            self._number = self._number or error.code
        is_ended = kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit) if self.is_asked else ())
        is_ended |= kind is KeyboardInterrupt  # without a signal here: another process of an SFT got it
        if is_ended or (self.is_asked and kind is not None):
            _kill_descendants()
        if is_ended:
            # Handlers stay, and so does the watch: at exit, libraries still wait for this and that.
            raise SystemExit(128 + (self._number or self._watched or signal.SIGTERM)) from None
        sys.stdout, sys.stderr = self._streams
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._pipe[1])
        self._thread.join()
        os.close(self._pipe[0])

    @property
    def is_asked(self) -> bool:
        """Whether a signal has come."""
        return bool(self._number or self._watched)

    def defer(self) -> None:
        """From here to the end nothing is raised: look at `is_asked`, or enter `immediate` now and then."""
        self._is_deferred = True

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Behind `defer`, a stretch where a signal raises KeyboardInterrupt, also one that came before."""
        self._is_deferred = False
        try:
            if self.is_asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_deferred = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Of any further one the watch takes care."""
        is_first, self._number = not self._number, self._number or number
        if is_first and not self._is_deferred:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """In a thread of its own: no Python handler runs while the main one waits in C code, as for another rank."""
        deadline = 0.0
        while True:
            left = max(0.0, deadline - time.monotonic()) if self._watched else None
            if not select.select([self._pipe[0]], [], [], left)[0]:
                self._end()
            numbers = os.read(self._pipe[0], 64)
            if not numbers:
                return
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if self._watched:
                    self._end()
                self._watched, deadline = number, time.monotonic() + self._grace_s
                _say(f"\n{signal.Signals(number).name}: ending within {self._grace_s:g} s; once more: at once\n")

    def _end(self) -> None:
        _kill_descendants()
        os._exit(128 + self._watched)


class _Output:
    """A standard stream that can be written to when nobody reads it any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of the stream."""
        with self._unheard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of the stream; Python asks for it at exit, too."""
        with self._unheard():
            self._stream.flush()

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what the stream still holds back has to go somewhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _say(text: str) -> None:
    """To standard error, unless nobody reads it. Not print: the main thread may hold its lock."""
    with suppress(OSError):
        if select.select([], [2], [], 0)[1]:  # else it is full, and writing would wait
            os.write(2, text.encode())


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Give SIGINT and SIGTERM their handlers back after a library, as Ray does, has put its own in their place.

    Ray's also sets an alarm, which aborts the process 3 s after a SIGTERM that came meanwhile: ray-project/ray#64830.
    """
    before, timer = {number: signal.getsignal(number) for number in SIGNALS}, signal.getitimer(signal.ITIMER_REAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _kill_descendants() -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
