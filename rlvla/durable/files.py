"""What outlives a kill: files that appear whole or not at all, locks, lines, a cache, and whether a run may go on."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from rlvla.plugins import present_name

CACHE = "RLVLA_CACHE"
"""Environment variable: the folder where a machine keeps what can be made again, copies of policies, the rows of data
sets; else `~/.cache/rlvla`. May be deleted at any time that no run starts."""


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


def cache_folder(kind: str) -> Path:
    """The folder of this machine for one kind of things, which need not be there yet."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache/rlvla") / kind


def claim(folder: Path, *, num_bytes: int) -> None:
    """Make an output folder and try out that it can be written to, before anything costly starts.

    Args:
        folder: made where it is not there.
        num_bytes: that will be written, about.

    Raises:
        OSError: it cannot be made or written to, or its disk has less room; the message names `output` and the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk takes names and refuses content
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno, f"output: cannot write to {folder} ({error.strerror}): name another folder, or make room there"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"output: {folder} is on a disk with {free / 1e6:.0f} MB free, and the run writes about "
            f"{num_bytes / 1e6:.0f} MB there: make room, or name another folder",
        )


def hold(folder: Path) -> None:
    """Keep an output folder for this process, which may hold it already, until it ends in whatever way.

    Raises:
        ValueError: another run writes there; the message names `output`, folder and process.
    """
    try:
        if folder.resolve() not in _HELD:
            _HELD[folder.resolve()] = lock(folder)
    except ValueError as error:
        raise ValueError(f"output: {error}") from error


_HELD: dict[Path, IO[str]] = {}
"""What `hold` holds, by folder. A child that runs another program, as all of Ray's do, does not inherit it."""


def lock(folder: Path) -> IO[str]:
    """The file whose closing, or whose process's death, lets another process write in the folder.

    Raises:
        ValueError: another process writes there; the message names folder and process.
    """
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ValueError(
            f"{folder}: process {owner} is writing there; wait for it, end it, or name another output folder"
        ) from None
    except OSError as error:  # Lustre, say, where it is mounted without them
        warnings.warn(f"{folder} has no locks ({error.strerror}): start no second run there", stacklevel=3)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def write_json(path: Path, content: Any, *, sort_keys: bool = False) -> None:
    """A JSON file that `appear_whole`."""
    with appear_whole(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=sort_keys) + "\n").encode())


def append_line(path: Path, content: Mapping[str, Any], *, allow_nan: bool = False) -> None:
    """Append a JSON object to a file of lines; it outlives `kill -9`, and a power failure once it was synced.

    Args:
        path: the file; made with its first line.
        content: JSON-able.
        allow_nan: let NaN and infinities pass, which Python reads back.

    Raises:
        OSError: there is no room, say; the message names `output` and the file.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(content, allow_nan=allow_nan) + "\n")
    except OSError as error:
        raise OSError(
            error.errno,
            f"output: cannot write to {path} ({error.strerror}): make room there, then run the same command again",
        ) from error


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file of JSON objects, up to the first that is none; no file has none.

    A kill or a full disk may cut the last line short, and a power failure leave zeros where it had not been synced.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return list(itertools.takewhile(_is_object, lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What the `whole_lines` of a file say."""
    return [json.loads(line) for line in whole_lines(path)]


def _is_object(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def visible(folder: Path, pattern: str) -> list[Path]:
    """What matches a glob pattern in a folder, in order, without what is hidden there or lies in a hidden folder of it.

    Others put such files beside ours: a Mac its `._name` with the same ending, Jupyter its `.ipynb_checkpoints`.
    """
    found = ((path, path.relative_to(folder).parts) for path in folder.glob(pattern))
    return sorted(path for path, parts in found if not any(part.startswith(".") for part in parts))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` everything in a folder, and the folder."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


CONTENT = "content of "
"""Begins the key of what lies at a path that a config names, see `rlvla.run.identity`."""
SHIPPED = " of rlvla "
"""Stands between the digest of code that comes with rlvla and the version that it came with."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, what tells two protocols apart, key by key; empty where nothing does.

    A module of ours is the same under its former and its present name. A content that only one of the two tells, or two
    versions of rlvla tell, is not compared, see `warn_untold`.
    """
    aside = _untold(before, now)
    before, now = ({k: present_name(v) if isinstance(v, str) else v for k, v in one.items()} for one in (before, now))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in aside]
    return ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)


def warn_untold(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Warn, in one line, of contents that cannot be compared: a hub id that had none yet, code of another version."""
    if keys := [key.removeprefix(CONTENT) for key in _untold(before, now)]:
        warnings.warn(f"{where} does not tell whether these are what they were: {', '.join(keys)}", stacklevel=3)


def _untold(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    contents = [key for key in {**before, **now} if key.startswith(CONTENT)]
    return [key for key in contents if _teller(before.get(key)) != _teller(now.get(key))]


def _teller(content: str | None) -> str | None:
    """The version of rlvla, where a content is that of its own code; None of no content."""
    return content and content.partition(SHIPPED)[2]
