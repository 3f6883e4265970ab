"""Rows of a data set on the disk: those of the Parquet files, in flat memory, unpacked once."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlvla.data import dataset, mapped
from rlvla.data.dataset import DatasetError
from rlvla.durable.files import CACHE, cache_folder
from tests.examples import demonstration, write_dataset
from tests.unit.recorded import edit_row

FILE = "data/chunk-000/file-000.parquet"
ANON_KB = """
import re, sys
from pathlib import Path
import numpy as np
from rlvla.data import dataset
demos = dataset.read(Path(sys.argv[1]))
for index in np.random.default_rng(0).integers(len(demos), size=200):
    demos[index]
assert len(demos.actions()) == len(demos.episode_index) == int(sys.argv[2])
print(re.search(r"RssAnon:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
"""A script: memory of its own, in kB, of a process that has looked at some rows and at whole columns of numbers."""


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


def write(folder: Path, num_episodes: int, per_episode: int = 3) -> Path:
    numbers = range(num_episodes * per_episode)
    made = [demonstration(number, num_looks=number % 3) for number in numbers]
    episodes = [made[start : start + per_episode] for start in numbers[::per_episode]]
    write_dataset(folder, episodes, robot="test", fps=2.0)
    return folder


def write_many(folder: Path, num_rows: int) -> Path:
    """Episodes of ten times the same row, of 2 kB of pictures."""
    write_dataset(folder, [[demonstration(0, side=16)]], robot="test", fps=2.0)
    row, numbers = pq.read_table(folder / FILE), np.arange(num_rows)
    table = row.take(pa.array(np.zeros(num_rows, np.int64)))
    for name, values in {"episode_index": numbers // 10, "frame_index": numbers % 10}.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, folder / FILE, row_group_size=100)
    return folder


def kept() -> list[Path]:
    """Files of rows in the cache."""
    return sorted(file for file in cache_folder("datasets").rglob("*") if file.is_file() and file.name != "lock")


def test_rows_are_those_of_the_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, across files and batches."""
    monkeypatch.setattr(dataset, "ROWS_PER_FILE", 100)
    folder = write(tmp_path / "demos", 80)
    files = dataset.data_files(folder)
    assert len(files) == 3
    whole = [row for file in files for row in pq.read_table(file).to_pylist()]
    for _ in range(2):  # unpacked now, and found
        demos = dataset.read(folder)
        assert [*demos.rows] == whole
        order = np.random.default_rng(0).permutation(len(whole))
        assert [demos.rows[index] for index in order] == [whole[index] for index in order]
        assert demos.rows[-1] == whole[-1]
        with pytest.raises(IndexError):
            demos.rows[len(whole)]
        assert demos.episode_index.tolist() == [row["episode_index"] for row in whole]
        actions = demos.actions()
        assert actions.dtype == np.float32
        assert np.array_equal(actions, np.array([row["action"] for row in whole], np.float32))
        told = [(row["task_index"], row["annotation.texts"]) for row in whole]
        expected = [text for task, texts in told for text in (demos.tasks[task], *texts)]
        assert [*dataset.text_corpus(demos)] == expected
    assert len(kept()) == 1


def test_threads_share_a_data_set(tmp_path: Path) -> None:
    demos = dataset.read(write(tmp_path / "demos", 50))
    alone = [*demos.rows]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert [*pool.map(demos.rows.__getitem__, range(len(demos)))] == alone


def test_a_set_that_has_changed_is_unpacked_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "demos", 2)
    before = dataset.read(folder)
    first = kept()
    edit_row(folder / FILE, 1, action=[[7.0] * 3] * 2)
    assert dataset.read(folder)[1].actions[0, 0] == 7
    assert before[1].actions[0, 0] == 1  # a run that is under way keeps what it has begun with
    assert len(kept()) == 1
    assert kept() != first
    edit_row(folder / FILE, 1, task_index=3)
    with pytest.raises(DatasetError, match="episode 0, frame 1: task_index is 3"):
        dataset.read(folder)
    assert kept() == []  # nor is a damaged set looked up
    os.utime(folder / FILE)
    with pytest.raises(DatasetError, match="episode 0, frame 1: task_index is 3"):
        dataset.read(folder)


def test_machines_that_share_a_home_leave_each_other_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a copy of the set at the same path, written at another time."""
    folder = write(tmp_path / "demos", 2)
    for number, node in enumerate(("a", "b", "a"), start=1):
        monkeypatch.setattr("platform.node", lambda node=node: node)
        os.utime(folder / FILE, ns=(ord(node), ord(node)))
        dataset.read(folder)
        assert len(kept()) == min(number, 2)


def test_a_data_file_that_vanishes_is_named_and_not_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = write(tmp_path / "demos", 2), mapped._unpacking

    def vanishing(*arguments: Any) -> Any:
        yield from real(*arguments)
        (folder / FILE).unlink()

    monkeypatch.setattr(mapped, "_unpacking", vanishing)
    with pytest.raises(DatasetError, match=r"file-000\.parquet: No such file") as caught:
        dataset.read(folder)
    assert CACHE not in str(caught.value)


def test_one_unpacks_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real, calls = write(tmp_path / "demos", 2), mapped._unpacking, []

    def slowly(*arguments: Any) -> Any:
        calls.append(threading.get_ident())
        time.sleep(0.3)
        return real(*arguments)

    monkeypatch.setattr(mapped, "_unpacking", slowly)
    with ThreadPoolExecutor(4) as pool:  # each opens the lock by itself, as a process does
        read = [*pool.map(lambda _: [*dataset.read(folder).rows], range(4))]
    assert len(calls) == 1
    assert all(rows == read[0] for rows in read)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = write(tmp_path / "demos", 2)
    dataset.read(folder)
    (file,) = kept()
    aside = file.with_name(f".{file.name}.12345")
    file.rename(aside)
    dataset.read(folder)
    assert kept() == [file]


def test_a_set_that_is_being_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = write(tmp_path / "demos", 2), mapped._unpacking

    def meanwhile(*arguments: Any) -> Any:
        yield from real(*arguments)
        os.utime(folder / FILE)

    monkeypatch.setattr(mapped, "_unpacking", meanwhile)
    with pytest.raises(DatasetError, match="demos: changes while it is read"):
        dataset.read(folder)
    assert kept() == []


def test_files_of_other_columns_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS_PER_FILE", 3)
    folder = write(tmp_path / "demos", 2)
    other = dataset.data_files(folder)[1]
    pq.write_table(pq.read_table(other).drop_columns(["timestamp"]), other)
    with pytest.raises(
        DatasetError, match=r"file-001\.parquet: its columns or their types are not those of .*file-000"
    ):
        dataset.read(folder)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "demos", 100)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match=rf"cannot keep the rows of .*demos in .*cache.*File too large.*set {CACHE}"):
            dataset.read(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert kept() == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"0 MB are free, and it takes about \d+ MB\): make room there"):
        dataset.read(folder)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "demos", 2)
    dataset.read(folder)
    (file,) = kept()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"\.arrow: damaged .*delete it"):
        dataset.read(folder)


def test_memory_is_flat_in_the_size_of_the_set(tmp_path: Path) -> None:
    """Held in memory, the larger set takes 200 MB more. Pages of a mapped file do not count: the kernel drops them."""

    def anonymous(num_rows: int) -> int:
        folder = tmp_path / str(num_rows)
        if not folder.exists():
            write_many(folder, num_rows)
        command = [sys.executable, "-c", ANON_KB, str(folder), str(num_rows)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    few, many = anonymous(500), anonymous(20_000)
    assert many < 1.1 * few  # the process that has unpacked it
    assert anonymous(20_000) < 1.1 * anonymous(500)  # and one that finds it
