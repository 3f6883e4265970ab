"""The rows of a data set on disk, a few at a time and without the columns that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlvla.data.dataset import data_files

BATCH_ROWS = 512
"""Rows without pictures in memory at once."""
BATCH_PICTURES = 16
"""Rows with pictures; each takes up to about a megabyte."""


def num_rows(folder: Path) -> int:
    """Of the whole data set; reads the files' footers only."""
    return sum(pq.read_metadata(file).num_rows for file in data_files(folder))


def rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every row of one file, these columns of it, none of which holds pictures."""
    with _open(file) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
            yield from batch.to_pylist()


def picked(file: Path, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Some whole rows of one file; row groups without any are not read.

    Args:
        file: of the data set.
        numbers: ascending, of rows in the file.
    """
    with _open(file) as parquet:
        end = 0
        for group in range(parquet.num_row_groups):
            start, end = end, end + parquet.metadata.row_group(group).num_rows
            wanted = [number - start for number in numbers if start <= number < end]
            if not wanted:
                continue
            first = 0
            for batch in parquet.iter_batches(BATCH_PICTURES, row_groups=[group]):
                for number in wanted:
                    if first <= number < first + len(batch):
                        yield batch.slice(number - first, 1).to_pylist()[0]
                first += len(batch)
                if first > wanted[-1]:
                    break


def _open(file: Path) -> pq.ParquetFile:
    # Without a buffer size a whole column of a row group is read at once: all pictures of a file.
    return pq.ParquetFile(file, buffer_size=1 << 16)
