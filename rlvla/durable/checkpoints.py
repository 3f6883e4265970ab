"""Checkpoint folders that are whole or not taken: written aside, checksummed, on the disk, and only then renamed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rlvla.durable.files import sync, sync_tree, write_json

MANIFEST = "manifest.json"
"""The file of a checkpoint folder that is written last: {"sha256": {relative path: hex digest}} of all others."""


@contextmanager
def appear_sealed(path: Path) -> Iterator[Path]:
    """Fill a folder aside; at the end it gets its manifest, goes to the disk and appears, at an exception nothing does.

    Killed between the two renames that replace a folder, it is not there: then both lie aside, and the next writer of
    the same path gives the one before its name back.

    Args:
        path: replaced if it exists, which a checkpoint that can be resumed from never does. Its folder is made, and
            what earlier writers left aside there is removed.

    Yields:
        The empty folder to fill.

    Raises:
        OSError: it could not be filled; the message names the folder, what was written and what is free, and the cause
            is chained. What was filled is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replaced = path.with_name(f"replaced-{path.name}")
    if replaced.exists() and not path.exists():
        replaced.rename(path)
    _remove(replaced)
    for left in path.parent.glob("incomplete-*"):
        shutil.rmtree(left)
    aside = aside_of(path)
    aside.mkdir()
    try:
        yield aside
        sync_tree(aside)  # before the manifest, which says that all of it is there
        write_json(aside / MANIFEST, {"sha256": digests(aside)})
    except BaseException as error:
        written = sum(seen(aside).values())
        shutil.rmtree(aside)
        if not isinstance(error, Exception):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"{path} could not be written ({error}): {written} bytes were, then {free} bytes were free; nothing of it "
            "is kept, what was there before is untouched. If the disk is full, make room and run the same command again"
        ) from error
    if path.exists():
        path.rename(replaced)
    aside.rename(path)
    _remove(replaced)
    sync(path.parent)
    sync(path.parent.parent)  # who may have got `path.parent` just now


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def aside_of(path: Path) -> Path:
    """Where `appear_sealed` fills a folder."""
    return path.with_name(f"incomplete-{path.name}")


def seen(folder: Path) -> dict[str, int]:
    """The files of a folder, as they are seen from this machine: bytes by relative path."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in _content(folder)}


def require_seen(folder: Path, written: Mapping[str, Mapping[str, int]]) -> None:
    """Look whether what several processes wrote into a folder is all here, before it is sealed.

    Args:
        folder: to be sealed.
        written: what each of them has `seen` in the folder of that name on its machine, by who and where it is.

    Raises:
        OSError: a file is not here, or of another size; the message says who wrote it.
    """
    for who, files in written.items():
        for name, size in files.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                raise OSError(
                    f"{name} of {who} ({size} bytes) is not in {folder} here, so that nobody could go on from it: "
                    "`output` must be a folder that all nodes share"
                )


def damage(folder: Path) -> str:
    """In words, why a folder is not what `appear_sealed` left; empty where it is. Reads every byte of it."""
    file = folder / MANIFEST
    try:
        if not file.is_file():
            return f"it has no {MANIFEST}"
        expected = json.loads(file.read_bytes())["sha256"]
        if not isinstance(expected, dict):
            return f"its {MANIFEST} cannot be read: sha256 is no object"
        found = digests(folder)
    except OSError as error:  # of the disk, or of who may read it
        return f"it cannot be read: {error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read: {error!r}"
    for name, digest in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} has another checksum than when it was written"
    return ""


def newest_whole(states: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest whole one of the `step-<number>` folders in `states`, which need not exist.

    Newer ones that are damaged are left as they are, each with a warning that names it and what is wrong.
    """
    by_step = _by_step(states)
    for step in sorted(by_step, reverse=True):
        if not (reason := damage(by_step[step])):
            return step, by_step[step]
        warnings.warn(f"{by_step[step]} is damaged ({reason}) and is not resumed from", stacklevel=2)
    if by_step:
        warnings.warn(f"{states} holds no whole checkpoint: the run starts over", stacklevel=2)
    return None


def forget_old(states: Path, keep: int, written: int) -> None:
    """Remove all `step-<number>` folders up to the one just `written` but the newest `keep`.

    Later ones are damaged, else the run would have gone on from them: they stay to be looked at until it gets there.
    """
    by_step = _by_step(states)
    for step in sorted(step for step in by_step if step <= written)[:-keep]:
        shutil.rmtree(by_step[step])


def _by_step(states: Path) -> dict[int, Path]:
    """The folders that are named as states are; a copy that somebody has put beside them is none."""
    found = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in states.glob("step-*") if path.is_dir())
    return {int(name[1]): path for name, path in found if name}


def _content(folder: Path) -> list[Path]:
    """Every file of a folder but the manifest."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but the manifest, by relative path."""
    files = {path.relative_to(folder).as_posix(): path for path in _content(folder)}
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return dict(zip(files, pool.map(digest_of, files.values()), strict=True))


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
