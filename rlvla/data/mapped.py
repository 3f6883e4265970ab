"""The rows of a data set in a file that is mapped into memory: a process holds the rows that it looks at, no others.

Parquet is made to be read by the hundred: one row costs a row group, 10 MB of pictures. So the files are unpacked once
on each machine, into Arrow's own format, where a row lies ready to be read; Hugging Face's `datasets` does the same. It
takes the set's bytes a second time, in this machine's cache. What is mapped is the kernel's: all ranks of a machine
share it, and it gives way where memory is short. The file holds the columns and values of the Parquet files, so that a
row is what it would be if they were read whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import platform
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rlvla import __version__
from rlvla.data.checks import NEEDED, check_rows
from rlvla.data.rows import DatasetError
from rlvla.data.tables import read_batches, require_columns
from rlvla.durable.files import CACHE, appear_whole, cache_folder

_LARGE = 1 << 30
"""Bytes from which on unpacking them shows a bar."""
_SLACK = 1 << 20
"""Bytes that the file may have on top of those of the Parquet files, which compress little but pictures."""


class MappedRows(Sequence[dict[str, Any]]):
    """Rows in a file of Arrow's, any of which costs a few times its bytes to read; threads may share an object.

    Args:
        file: from `unpacked`.

    Raises:
        DatasetError: the file is damaged; the message names it.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._batches = pa.ipc.open_file(pa.memory_map(str(file)))
            self._lock = threading.Lock()  # of the reader, which is not made for several threads
            lengths = [batch.num_rows for batch in self._each_batch()]
        except pa.ArrowException as error:
            raise DatasetError(f"{file}: damaged ({error}); delete it, and it is made again") from error
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batch(number)
        (row,) = batch.slice(index - (int(self._ends[number]) - batch.num_rows), 1).to_pylist()
        return row

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns."""
        return tuple(self._batches.schema.names)

    def columns(self, *names: str) -> Iterator[dict[str, Any]]:
        """Each row, these columns of it; the others are not read."""
        for batch in self._each_batch():
            yield from batch.select(list(names)).to_pylist()

    def array(self, name: str, dtype: type[np.generic], null: int | None = None) -> np.ndarray:
        """[rows, ...]: a column of numbers, or of nested lists of them, as long in each row.

        Args:
            name: of the column.
            dtype: of the result.
            null: what stands where a row of plain numbers holds none; None: each of them holds one.
        """
        shape = np.shape(self[0][name])
        values = np.empty((len(self), *shape), dtype)
        for end, batch in zip(self._ends, self._each_batch(), strict=True):
            column = batch.column(name)
            for _ in shape:
                column = column.flatten()
            column = column if null is None else column.fill_null(null)
            numbers = column.to_numpy()  # not copied, hence without nulls
            values[end - batch.num_rows : end] = numbers.reshape(-1, *shape)
        return values

    def _each_batch(self) -> Iterator[pa.RecordBatch]:
        return map(self._batch, range(self._batches.num_record_batches))

    def _batch(self, number: int) -> pa.RecordBatch:
        """Not copied: its columns lie in the file."""
        with self._lock:
            return self._batches.get_batch(number)


def unpacked(path: Path, files: Sequence[Path], num_tasks: int) -> MappedRows:
    """The rows of a data set, unpacked and checked unless this machine has done so before.

    What was unpacked of the same folder when its files had other sizes or times is deleted. Of several processes one
    unpacks, and the others wait.

    Args:
        path: of the data set.
        files: with its rows.
        num_tasks: in `meta/tasks.parquet`.

    Raises:
        DatasetError: see `read_batches` and `check_rows`; or the files are being written to.
        OSError: the cache cannot be written, or has no room; the message names it and what to set.
    """
    own = (*files, path / "meta/tasks.parquet")
    before = _stamps(own)
    # By machine, as several may share a home, each with a set of its own at the same path.
    folder = cache_folder("datasets") / _digest([platform.node(), str(path.resolve())])
    file = folder / f"{_digest([__version__, before])}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the machine's other ranks want the same rows at the same time
            if not file.is_file():
                for old in folder.iterdir():  # of a run that was killed while it wrote, too
                    if old.name != "lock":
                        old.unlink()
                _require_room(folder, sum(size for _, size, _ in before))
                with appear_whole(file) as target:
                    check_rows(_unpacking(path, files, target), num_tasks, path)
                    if _stamps(own) != before:
                        raise DatasetError(f"{path}: changes while it is read: start again when it is written")
            return MappedRows(file)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot keep the rows of {path} in {folder} ({error.strerror or error}): make room there, or set "
            f"{CACHE} to a folder on a local disk that has some",
        ) from error


def _unpacking(path: Path, files: Sequence[Path], target: BinaryIO) -> Iterator[dict[str, Any]]:
    """Write all rows, and hand each of them out to be looked at."""
    sizes = [size for _, size, _ in _stamps(files)]
    size = sum(sizes)
    bar = tqdm(total=size, desc=f"unpacking {path}", unit="B", unit_scale=True, disable=size < _LARGE, mininterval=2)
    writer: Any = None
    schema = pa.schema([])
    for file, num_bytes in zip(files, sizes, strict=True):
        for batch in read_batches(file):
            require_columns(batch.schema.names, NEEDED, file, "; annotate with recipes/annotate.py")
            if writer is None:
                schema = batch.schema
                writer = pa.ipc.new_file(target, schema)
            if not batch.schema.equals(schema):
                raise DatasetError(f"{file}: its columns or their types are not those of {files[0]}: annotate again")
            writer.write_batch(batch)
            yield from batch.to_pylist()
        bar.update(num_bytes)
    bar.close()
    if writer is None:
        raise DatasetError(f"{path}: there is no row in it")
    writer.close()


def _require_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SLACK:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB are free, and it takes about {num_bytes / 1e6:.0f} MB")


def _stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """(name, bytes, last change in ns) of each file. Raises DatasetError: one cannot be looked at."""
    try:
        return [(file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.stat(),)]
    except OSError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}; it was there when the data set was opened") from error


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
