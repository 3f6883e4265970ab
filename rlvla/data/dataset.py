"""Annotated demonstrations as a LeRobot v3 data set: one row a decision, `action` a chunk [K, A], images as PNG.

Layout: `meta/info.json`, `meta/stats.json`, `meta/tasks.parquet`, `meta/episodes/chunk-000/file-000.parquet`,
`data/chunk-000/file-NNN.parquet`. Written and read with pyarrow; columns as LeRobot names them
(https://huggingface.co/docs/lerobot/lerobot-dataset-v3), beside them `annotation.*` and `provenance.*`, which
`rlvla.data.rows` lists. The same episodes make the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlvla.config import ActionKind
from rlvla.data.mapped import MappedRows, unpacked
from rlvla.data.rows import PLACE, DatasetError, decode, features, require_same
from rlvla.data.tables import read_rows
from rlvla.data.types import Demonstration
from rlvla.durable.files import appear_whole, visible, write_json

ROWS_PER_FILE = 2000
ROWS_PER_GROUP = 100
"""What a reader of a few rows has to load: about 10 MB of pictures."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationSet:
    """A data set on the disk, of which memory holds what is looked at; threads may share it."""

    path: Path
    rows: MappedRows
    tasks: tuple[str, ...]
    suites: tuple[str, ...] = ()
    """Suites from whose train initial states the episodes start."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Demonstration:
        row = self.rows[index]
        return decode(row, self.tasks[row["task_index"]], self._place(row))

    def place(self, index: int) -> str:
        """Folder, episode and frame of a row, for errors."""
        return self._place(self.rows[index])

    def _place(self, row: Mapping[str, Any]) -> str:
        return f"{self.path}, episode {row['episode_index']}, frame {row['frame_index']}"

    @property
    def episode_index(self) -> np.ndarray:
        """[len] int, the episode that each row belongs to."""
        return self.rows.array("episode_index", np.int64)

    @property
    def views(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of each camera's picture, the same in all rows."""
        return tuple((image.shape[0], image.shape[1]) for image in self[0].images)

    def actions(self) -> np.ndarray:
        """[len, K, A] float32."""
        return self.rows.array("action", np.float32)

    def proprio(self) -> np.ndarray:
        """[len, P] float32."""
        return self.rows.array("observation.state", np.float32)

    def key_steps(self) -> np.ndarray:
        """[len] int64, see `Demonstration.key_step`; -1 where there is no key frame ahead, or nobody has told."""
        name = "annotation.key_step"
        return self.rows.array(name, np.int64, null=-1) if name in self.rows.names else np.full(len(self), -1)


class Writer:
    """Writes a data set as its episodes come; memory holds one file's rows, and all states and actions.

    `meta/info.json` comes last, and `read` takes a folder without it for no data set, so that a kill leaves nothing
    that could be taken for whole.

    Args:
        path: folder to make; must not exist.
        robot: `robot_type` in `info.json`.
        fps: decisions a second.
        suites: see `DemonstrationSet`.
        action_kind: see `ReadConfig.actions`, kept in `info.json`; None: not known.

    Raises:
        FileExistsError: the folder exists; nothing is overwritten.
    """

    def __init__(
        self,
        path: Path,
        *,
        robot: str,
        fps: float,
        suites: Sequence[str] = (),
        action_kind: ActionKind | None = None,
    ) -> None:
        path.mkdir(parents=True)
        self._path = path
        self._source: dict[str, Any] = {"robot_type": robot, "fps": fps, "suites": list(suites)}
        if action_kind is not None:
            self._source["action_kind"] = action_kind
        self._tasks: dict[str, int] = {}
        self._lengths: list[int] = []
        self._num_files = 0
        self._pending: list[pa.Table] = []
        self._schema: pa.Schema | None = None
        self._numbers: dict[str, list[np.ndarray]] = {"action": [], "observation.state": []}

    def add(self, rows: pa.Table) -> None:
        """Append an episode that `encode` made; raises DatasetError where its columns are not those of the first."""
        self._schema = self._schema or rows.schema
        require_same(rows.schema, self._schema, f"{self._path}, episode {len(self._lengths)}")
        for name, values in self._numbers.items():
            values.append(np.array(rows[name].to_pylist(), np.float32))
        self._pending.append(self._placed(rows))
        self._lengths.append(len(rows))
        if sum(map(len, self._pending)) >= ROWS_PER_FILE:
            self._flush()

    def finish(self) -> int:
        """Write what is left, and `meta`.

        Returns:
            Number of episodes.

        Raises:
            DatasetError: there is none.
        """
        if self._schema is None:
            raise DatasetError(f"{self._path}: there is no episode to write")
        if self._pending:
            self._flush()
        self._write_meta(self._schema)
        return len(self._lengths)

    def _placed(self, rows: pa.Table) -> pa.Table:
        """Rows with their places in the set instead of the instruction's words."""
        frames = np.arange(len(rows))
        places = {
            "timestamp": frames / self._source["fps"],
            "frame_index": frames,
            "episode_index": np.full(len(rows), len(self._lengths)),
            "index": sum(self._lengths) + frames,
            "task_index": [self._tasks.setdefault(task, len(self._tasks)) for task in rows["task"].to_pylist()],
        }
        placed = rows.drop_columns(["task"]).replace_schema_metadata()
        for name, kind in PLACE.items():
            placed = placed.append_column(pa.field(name, kind), pa.array(places[name], kind))
        return placed

    def _flush(self) -> None:
        file = self._path / f"data/chunk-000/file-{self._num_files:03d}.parquet"
        _write_table(file, pa.concat_tables(self._pending))
        self._pending.clear()
        self._num_files += 1

    def _write_meta(self, schema: pa.Schema) -> None:
        meta = self._path / "meta"
        tasks = {"task_index": list(self._tasks.values()), "task": list(self._tasks)}
        _write_table(meta / "tasks.parquet", pa.table(tasks))
        ends = np.cumsum(self._lengths)
        episodes = {
            "episode_index": list(range(len(ends))),
            "length": self._lengths,
            "dataset_from_index": (ends - self._lengths).tolist(),
            "dataset_to_index": ends.tolist(),
        }
        _write_table(meta / "episodes/chunk-000/file-000.parquet", pa.table(episodes))
        write_json(meta / "stats.json", {name: _statistics(values) for name, values in self._numbers.items()})
        info = {
            "codebase_version": "v3.0",
            **self._source,
            "total_episodes": len(ends),
            "total_frames": sum(self._lengths),
            "total_tasks": len(self._tasks),
            "splits": {"train": f"0:{len(ends)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "features": features(schema),
        }
        write_json(meta / "info.json", info)


def read_sizes(path: Path) -> tuple[tuple[tuple[int, int], ...], tuple[int, int]]:
    """What `meta/info.json` says: (H, W) of each camera's picture, and [K, A] of the actions.

    Raises:
        DatasetError: it is another kind of data set; the message names the file.
    """
    file = path / "meta/info.json"
    features = json.loads(file.read_text())["features"]
    images = [told["shape"] for name, told in features.items() if name.startswith("observation.images.")]
    shape = features["action"]["shape"]
    if len(shape) != 2:
        raise DatasetError(f"{file}: action has shape {shape}, need [K, A]: annotate with recipes/annotate.py --source")
    chunk_length, action_size = shape
    return tuple((height, width) for height, width, _ in images), (chunk_length, action_size)


def data_files(path: Path) -> list[Path]:
    """Of a data set, in the order of the rows."""
    return visible(path / "data", "chunk-*/file-*.parquet")


def read_tasks(path: Path) -> tuple[str, ...]:
    """Instructions of a data set by `task_index`."""
    file = path / "meta/tasks.parquet"
    rows = list(read_rows(file, ("task_index", "task")))
    tasks = {row["task_index"]: row["task"] for row in rows}
    if tasks.keys() != set(range(len(rows))) or not all(isinstance(task, str) for task in tasks.values()):
        raise DatasetError(f"{file}: need a task in words for each task_index from 0 to {len(rows) - 1}")
    return tuple(tasks[index] for index in range(len(rows)))


def read(path: Path) -> DemonstrationSet:
    """Open a data set that a `Writer` made; of one that is new here, check all but its pictures, see `unpacked`.

    Raises:
        DatasetError: it names the file, and the column, the episode and frame, or the damage.
        OSError: see `unpacked`.
    """
    files = data_files(path)
    if not files or not all((path / "meta" / name).is_file() for name in ("tasks.parquet", "info.json")):
        raise DatasetError(
            f"{path}: no LeRobot v3 data set here (data/chunk-*/file-*.parquet, meta/tasks.parquet, meta/info.json)"
        )
    tasks = read_tasks(path)
    rows = unpacked(path, files, len(tasks))
    return DemonstrationSet(path=path, rows=rows, tasks=tasks, suites=_suites(path / "meta/info.json"))


def _suites(file: Path) -> tuple[str, ...]:
    try:
        suites = json.loads(file.read_text()).get("suites", ())
    except (ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{file}: damaged ({error})") from error
    if not isinstance(suites, list | tuple) or not all(isinstance(suite, str) for suite in suites):
        raise DatasetError(f"{file}: suites is {suites!r}, need a list of names")
    return tuple(suites)


def _statistics(episodes: Sequence[np.ndarray]) -> dict[str, list[Any]]:
    """Statistics by name, each a list over D, of arrays [n, ..., D] float32; `count` is how many values they are of."""
    values = np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in episodes])
    # One component after the other: in float64 all of them would take twice the memory that they have here.
    found = [_moments(values[:, i].astype(np.float64)) for i in range(values.shape[1])]
    return {name: [moments[name] for moments in found] for name in found[0]} | {"count": [len(values)]}


def _moments(values: np.ndarray) -> dict[str, float]:
    q01, q99 = np.quantile(values, (0.01, 0.99))
    moments = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {name: float(value) for name, value in (moments | {"q01": q01, "q99": q99}).items()}


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with appear_whole(path) as file:
        pq.write_table(table, file, row_group_size=ROWS_PER_GROUP, write_page_checksum=True)


def text_corpus(demonstrations: DemonstrationSet) -> Iterator[str]:
    """Everything that the demonstrations say and are told, to train a tokenizer on."""
    for row in demonstrations.rows.columns("task_index", "annotation.texts"):
        yield demonstrations.tasks[row["task_index"]]
        yield from row["annotation.texts"]
