"""One process with `Interrupts`: what a signal does where, by its exit code and what it printed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.run import ROOT, environment

HEAD = """
import os, signal, subprocess, sys, time
from rlvla.durable.interrupts import Interrupts, kept_handlers
def hit(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.2)
"""


def run(body: str) -> tuple[int, list[str]]:
    """(exit code, lines printed)."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_is_not_deferred(number: signal.Signals) -> None:
    code, printed = run(f"with Interrupts():\n    print('a')\n    hit({int(number)})\n    print('b')")
    assert (code, printed) == (128 + number, ["a"])


def test_deferred_work_is_finished_and_the_next_stretch_not_begun() -> None:
    code, printed = run("""
with Interrupts() as interrupts:
    interrupts.defer()
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
    body = "with Interrupts() as interrupts:\n    interrupts.defer()\n    hit()\nprint('complete')"
    assert run(body) == (0, ["complete"])


def test_an_error_while_saving_is_not_hidden() -> None:
    body = "with Interrupts() as interrupts:\n    interrupts.defer()\n    hit()\n    raise OSError('full')"
    assert run(body) == (1, [])


def test_a_library_that_takes_the_handler_gives_it_back() -> None:
    body = """
with Interrupts():
    with kept_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(100)
    assert signal.alarm(0) == 0
    hit()
    print('ignored')
"""
    assert run(body) == (128 + signal.SIGTERM, [])


def test_what_is_not_over_in_time_is_ended() -> None:
    body = """
with Interrupts(grace_s=0.5) as interrupts:
    interrupts.defer()
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])
    hit()
    time.sleep(1000)
"""
    assert run(body) == (128 + signal.SIGTERM, [])  # the child, too, is gone, else its end of the pipe would be open


UNHEARD = """
from pathlib import Path
from tqdm import tqdm
with Interrupts(grace_s=float(sys.argv[1])) as interrupts:
    interrupts.defer()
    bar = tqdm(total=9, mininterval=0)
    print('ready', flush=True)
    while not interrupts.is_asked:
        time.sleep(0.01)
    time.sleep(1000 * int(sys.argv[2]))  # stuck, or not
    bar.set_postfix(loss=1)
    bar.update()
    tqdm.write('stopped', sys.stderr)
    print('stopped')
    Path(sys.argv[3]).touch()
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("grace_s", "is_stuck", "num_signals"),
    [(60, False, 1), (60, True, 2), (0.5, True, 1)],
    ids=["it-saves", "a-second-signal-ends-it", "time-ends-it"],
)
def test_a_run_that_nobody_hears_any_more_ends_as_any_other(
    tmp_path: Path, grace_s: float, is_stuck: bool, num_signals: int
) -> None:
    """As of `recipe 2>&1 | tee log`, where Ctrl-C ends `tee`, too."""
    command = [sys.executable, "-c", HEAD + UNHEARD, str(grace_s), str(int(is_stuck)), str(tmp_path / "saved")]
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        for _ in range(num_signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.wait(timeout=400) == 128 + signal.SIGINT
    finally:
        process.kill()
    assert (tmp_path / "saved").exists() != is_stuck
