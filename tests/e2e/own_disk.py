"""A rank of a script that torchrun starts, on a node whose disk is its own: python own_disk.py RANK FOLDER SCRIPT ...

The process of that rank has a tmpfs at FOLDER, which nobody else sees; see `tests/full_disk.py`.
"""

from __future__ import annotations

import os
import sys


def main(rank: str, folder: str, *arguments: str) -> None:
    """Become the script."""
    command = [sys.executable, *arguments]
    if os.environ["RANK"] == rank:
        script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", script, folder, *command]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
