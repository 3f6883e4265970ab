"""Work that is killed at a known place, so that no test has to be quick enough.

A function is killed in a child before each of its changes of a file, see `killed_everywhere`. A script is struck when
one function of it calls another, in any thread: `python killed.py CALLER FUNCTION COUNT SIGNAL SCRIPT ...`
sends it the signal at the COUNT-th call. With COUNT 0 and a file for SIGNAL, each such call adds a byte to the file.
"""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def fork(work: Callable[[], object]) -> int:
    """Process id of a child that works and exits with 0, or with 1 where it raises."""
    if child := os.fork():
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def is_over(child: int) -> bool:
    """Whether a child, waited for, got to its end; one that raised ends the test."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the child exited with {code}"
    return code == 0


def kill_before_change(number: int) -> None:
    """This process dies before its n-th change of a file or folder from here on."""
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or is_write:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def killed_everywhere(work: Callable[[], object]) -> Iterator[int]:
    """Children do the work, killed before their first change of a file, the second, and so on; yields after each kill.

    The last one gets to its end, and nothing is yielded behind it.
    """
    for number in itertools.count(1):

        def killed(number: int = number) -> None:
            kill_before_change(number)
            work()

        if is_over(fork(killed)):
            return
        yield number


def strike(caller: str, function: str, count: int, what: str, *arguments: str) -> None:
    """Run a script in this process, with the rest as its arguments."""
    num_calls = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal num_calls
        if event != "call" or frame.f_code.co_name != function:
            return
        if frame.f_back is None or frame.f_back.f_code.co_name != caller:
            return
        num_calls += 1
        if not count:
            with Path(what).open("ab") as file:
                file.write(b".")
        elif num_calls == count:
            os.kill(os.getpid(), int(what))

    sys.argv = list(arguments)
    sys.path[0] = str(Path(arguments[0]).parent)
    sys.setprofile(look)
    threading.setprofile(look)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    strike(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
