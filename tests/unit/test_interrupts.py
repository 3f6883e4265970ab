"""One process with `Interrupts`: what a signal does where, by its exit code and what it printed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.run import ROOT, environment

HEAD = """
import os, signal, subprocess, sys, time
from rlvla.interrupts import Interrupts, kept_handlers
def hit(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.2)
"""


def run(body: str) -> tuple[int, list[str]]:
    """(exit code, lines printed)."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_is_not_deferred(number: signal.Signals) -> None:
    code, printed = run(f"with Interrupts():\n    print('a')\n    hit({int(number)})\n    print('b')")
    assert (code, printed) == (128 + number, ["a"])


def test_deferred_work_is_finished_and_the_next_stretch_not_begun() -> None:
    code, printed = run("""
with Interrupts() as interrupts, interrupts.deferred():
    with interrupts.immediate():
        print('rollout')
    hit()
    print('learned', interrupts.is_asked)
    try:
        with interrupts.immediate():
            print('rollout')
    except KeyboardInterrupt:
        print('saved')
        raise
""")
    assert (code, printed) == (128 + signal.SIGTERM, ["rollout", "learned", "True", "saved"])


def test_a_run_that_is_complete_by_then_ends_as_one() -> None:
    body = "with Interrupts() as interrupts, interrupts.deferred():\n    hit()\nprint('complete')"
    assert run(body) == (0, ["complete"])


def test_an_error_while_saving_is_not_hidden() -> None:
    body = "with Interrupts() as interrupts, interrupts.deferred():\n    hit()\n    raise OSError('full')"
    assert run(body) == (1, [])


def test_a_library_that_takes_the_handler_gives_it_back() -> None:
    body = """
with Interrupts():
    with kept_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hit()
    print('ignored')
"""
    assert run(body) == (128 + signal.SIGTERM, [])


def test_what_is_not_over_in_time_is_ended() -> None:
    body = """
with Interrupts(grace_s=0.5) as interrupts, interrupts.deferred():
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])
    hit()
    time.sleep(100)
"""
    started = time.monotonic()
    assert run(body) == (128 + signal.SIGTERM, [])
    assert time.monotonic() - started < 30  # the child, too, is gone, else its end of the pipe would be open
