"""A script that gets a signal in the midst of something, so that no test has to be quick enough.

python struck.py CALLER FUNCTION COUNT SIGNAL SCRIPT ...: when CALLER calls FUNCTION, by name, for the COUNT-th time.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import FrameType
from typing import Any


def main(caller: str, function: str, count: int, number: int, *arguments: str) -> None:
    """Run the script in this process, with the rest as its arguments."""
    left = count

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        names = frame.f_code.co_name, frame.f_back and frame.f_back.f_code.co_name
        if event != "call" or names != (function, caller):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

    sys.argv = list(arguments)
    sys.path[0] = str(Path(arguments[0]).parent)
    sys.setprofile(look)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
