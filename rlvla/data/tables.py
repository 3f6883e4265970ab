"""Parquet tables of data sets, ours and LeRobot's: checksums verified, damage told with the file's name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlvla.data.rows import DatasetError

ROWS_PER_BATCH = 64
"""Rows that `read_batches` has in memory; each may hold pictures."""


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole table, or those of `columns` that it has; raises DatasetError."""
    with _opened(file) as table:
        names = set(table.schema_arrow.names)
        return table.read(None if columns is None else [column for column in columns if column in names])


def read_batches(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A table, few rows at a time, or these columns of it; raises DatasetError, also where a column is missing."""
    with _opened(file) as table:
        require_columns(table.schema_arrow.names, columns or (), file)
        yield from table.iter_batches(ROWS_PER_BATCH, columns=None if columns is None else list(columns))


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every row of a table, these columns of it. Errors as of `read_batches`."""
    for batch in read_batches(file, columns):
        yield from batch.to_pylist()


def picked_rows(files: Sequence[Path], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Whole rows by their numbers, ascending, in all tables together; row groups without any are not read."""
    end = 0
    for file in files:
        with _opened(file) as table:
            for group in range(table.num_row_groups):
                start, end = end, end + table.metadata.row_group(group).num_rows
                if wanted := [number - start for number in numbers if start <= number < end]:
                    yield from table.read_row_group(group).take(wanted).to_pylist()


def require_columns(names: Collection[str], needed: Collection[str], file: Path, advice: str = "") -> None:
    """Raises DatasetError where a table lacks a column."""
    if missing := set(needed) - set(names):
        raise DatasetError(f"{file}: no column {', '.join(sorted(missing))}{advice}")


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    if not file.is_file():
        raise DatasetError(f"{file}: this table is missing")
    try:
        # Without a buffer size a whole column of a row group is read at once: all pictures of a file.
        with pq.ParquetFile(file, page_checksum_verification=True, buffer_size=1 << 16) as table:
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: damaged ({error}); make or download it again") from error
