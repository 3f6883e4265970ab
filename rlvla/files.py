"""What outlives a kill: files that appear whole or not at all, folders on the disk, and whether a run may go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def appear_whole(path: Path, *, is_durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file aside and rename it at the end, so that under its name it is whole or not there.

    Args:
        path: replaced if it exists; its folder must exist.
        is_durable: wait for the disk, so that a power failure cannot take the file back. What is not waited for
            outlives `kill -9` all the same, since the kernel has it; but a power failure may leave the name without
            the content, so that whoever reads it needs a checksum.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if is_durable:
        sync(path.parent)


def write_json(path: Path, content: Any, *, sort_keys: bool = False) -> None:
    """A JSON file that `appear_whole`."""
    with appear_whole(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=sort_keys) + "\n").encode())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` everything in a folder, and the folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, what tells two protocols apart, key by key; empty where nothing does."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)
