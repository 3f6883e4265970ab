"""A script that is struck in the midst of something, or that tells when it gets there: no test has to be quick enough.

python struck.py CALLER FUNCTION COUNT SIGNAL SCRIPT ...: a signal when CALLER calls FUNCTION for the COUNT-th time, by
name, in the main thread. With COUNT 0 and a file in the place of SIGNAL: a byte more in the file for each such call.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any


def main(caller: str, function: str, count: int, what: str, *arguments: str) -> None:
    """Run the script in this process, with the rest as its arguments."""
    num_calls = 0

    def strike() -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == count:
            os.kill(os.getpid(), int(what))

    def note() -> None:
        with Path(what).open("ab") as file:
            file.write(b".")

    called: Callable[[], None] = strike if count else note

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (frame.f_code.co_name, frame.f_back and frame.f_back.f_code.co_name) == (
            function,
            caller,
        ):
            called()

    sys.argv = list(arguments)
    sys.path[0] = str(Path(arguments[0]).parent)
    sys.setprofile(look)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
