"""The policy's folder on every node: where it lies, or a copy brought from the driver's node, which alone has it."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlvla.durable.checkpoints import appear_sealed, digests
from rlvla.durable.files import cache_folder

PIECE = 64 * 2**20
"""Bytes that travel at once."""


class Shelf:
    """An actor on the driver's node that gives out the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file by its name; every byte is read when the first node asks."""
        self._digests = self._digests or digests(self._folder)
        return self._digests

    def read(self, name: str, offset: int) -> bytes:
        """At most `PIECE` bytes of a file, none behind its end."""
        with (self._folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE)


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A folder that an actor finds on its own node with `here`."""

    folder: Path
    """On the driver's node."""
    stamps: Mapping[str, tuple[int, int]]
    """(bytes, last change in ns) of each file by its name: where they agree, it is the same folder on a shared disk."""
    shelf: str
    """Name of the `Shelf`."""

    def here(self) -> Path:
        """The folder on this node, brought to it first if need be.

        Raises:
            OSError: it cannot be written here, or what arrived is not what was sent.
        """
        if self.folder.is_dir() and stamps(self.folder) == self.stamps:
            return self.folder
        shelf: Any = ray.get_actor(self.shelf)
        sent: Any = ray.get(shelf.digests.remote())
        return self.brought(sent, lambda name, offset: ray.get(shelf.read.remote(name, offset)))

    def brought(self, sent: Mapping[str, str], read: Callable[[str, int], bytes]) -> Path:
        """The copy in this node's cache; `sent` has the digests, `read` is as of `Shelf`. Errors as of `here`."""
        cache = cache_folder("policies")
        cache.mkdir(parents=True, exist_ok=True)
        copy = cache / hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()[:16]
        with (cache / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the node's other actors want the same folder at the same time
            if not copy.is_dir():
                with appear_sealed(copy) as aside:
                    for name in sent:
                        _write(aside / name, name, read)
                    if digests(aside) != sent:
                        raise OSError(f"{self.folder} did not arrive as it was sent: is it being written to?")
        return copy


def _write(path: Path, name: str, read: Callable[[str, int], bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while piece := read(name, file.tell()):
            file.write(piece)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Of all files of a folder; see `Carried`."""
    files = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in files.items()}


def carry(folder: Path) -> tuple[Carried, Any]:
    """What actors on other nodes find a folder of this one with, and the handle of its `Shelf`, which lives as long."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = f"shelf-{uuid4().hex}"
    shelf: Any = ray.remote(Shelf).options(name=name, num_cpus=0, scheduling_strategy=here).remote(folder)
    return Carried(folder=folder, stamps=stamps(folder), shelf=name), shelf


def located(folder: Path | Carried) -> Path:
    """A folder on this node. Errors as of `Carried.here`."""
    return folder if isinstance(folder, Path) else folder.here()
