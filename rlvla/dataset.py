"""Annotated demonstrations as a LeRobot v3 data set: one row a decision, `action` a chunk [K, A], images as PNG.

Layout: `meta/info.json`, `meta/stats.json`, `meta/tasks.parquet`, `meta/episodes/chunk-000/file-000.parquet`,
`data/chunk-000/file-NNN.parquet`. Written and read with pyarrow; columns as LeRobot names them
(https://huggingface.co/docs/lerobot/lerobot-dataset-v3), beside them `annotation.*`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlvla.types import Demonstration

ROWS_PER_FILE = 2000
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class DatasetError(ValueError):
    """A data set that cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationSet:
    """A data set in memory, pictures still compressed."""

    path: Path
    rows: Sequence[dict[str, Any]]
    tasks: tuple[str, ...]
    suites: tuple[str, ...] = ()
    """Suites from whose train initial states the episodes start."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Demonstration:
        row = self.rows[index]
        names = sorted(key for key in row if key.startswith("observation.images."))
        return Demonstration(
            instruction=self.tasks[row["task_index"]],
            images=tuple(_decode(row[name]) for name in names),
            proprio=np.array(row["observation.state"], np.float32),
            texts=tuple(row["annotation.texts"]),
            crops=tuple(_decode(crop) for crop in row["annotation.crops"]),
            actions=np.array(row["action"], np.float32),
            carried_thought=row["annotation.carried_thought"],
        )

    @property
    def episode_index(self) -> np.ndarray:
        """[len] int, the episode that each row belongs to."""
        return np.array([row["episode_index"] for row in self.rows])

    def actions(self) -> np.ndarray:
        """[len, K, A] float32."""
        return np.array([row["action"] for row in self.rows], np.float32)


def write(
    path: Path, episodes: Iterable[Sequence[Demonstration]], *, robot: str, fps: float, suites: Sequence[str] = ()
) -> int:
    """Write episodes as they come; memory holds one file's rows.

    Args:
        path: folder to make; must not exist.
        episodes: each a sequence of decisions.
        robot: `robot_type` in `info.json`.
        fps: decisions a second.
        suites: see `DemonstrationSet`.

    Returns:
        Number of episodes.

    Raises:
        FileExistsError: the folder exists; nothing is overwritten.
    """
    path.mkdir(parents=True)
    tasks: dict[str, int] = {}
    lengths: list[int] = []
    rows: list[dict[str, Any]] = []
    stats = _Stats()
    first: Demonstration | None = None
    num_files = num_rows = 0
    for episode in episodes:
        for frame, decision in enumerate(episode):
            first = first or decision
            task = tasks.setdefault(decision.instruction, len(tasks))
            rows.append(_row(decision, task, len(lengths), frame, num_rows, fps))
            stats.add(decision)
            num_rows += 1
        lengths.append(len(episode))
        if len(rows) >= ROWS_PER_FILE:
            _write_rows(path, rows, num_files)
            rows, num_files = [], num_files + 1
    if first is None:
        raise DatasetError(f"{path}: there is no episode to write")
    if rows:
        _write_rows(path, rows, num_files)
    source = {"robot_type": robot, "fps": fps, "suites": list(suites)}
    _write_meta(path, first, tasks, lengths, stats, source)
    return len(lengths)


def read(path: Path) -> DemonstrationSet:
    """Read a data set that `write` made; raises DatasetError naming the file and the column."""
    files = sorted((path / "data").glob("chunk-*/file-*.parquet"))
    if not files or not (path / "meta/tasks.parquet").is_file():
        raise DatasetError(f"{path}: no LeRobot v3 data set here (data/chunk-*/file-*.parquet, meta/tasks.parquet)")
    rows: list[dict[str, Any]] = []
    for file in files:
        table = pq.read_table(file)
        missing = {"action", "task_index", "annotation.texts", "annotation.crops"} - set(table.column_names)
        if missing:
            raise DatasetError(f"{file}: no column {', '.join(sorted(missing))}; annotate with recipes/annotate.py")
        rows += table.to_pylist()
    table = pq.read_table(path / "meta/tasks.parquet").sort_by("task_index")
    info = json.loads((path / "meta/info.json").read_text())
    tasks = tuple(table.column("task").to_pylist())
    return DemonstrationSet(path=path, rows=rows, tasks=tasks, suites=tuple(info.get("suites", ())))


def _row(decision: Demonstration, task: int, episode: int, frame: int, index: int, fps: float) -> dict[str, Any]:
    return {
        **{f"observation.images.{i}": _encode(image) for i, image in enumerate(decision.images)},
        "observation.state": decision.proprio.tolist(),
        "action": decision.actions.tolist(),
        "annotation.texts": list(decision.texts),
        "annotation.crops": [_encode(crop) for crop in decision.crops],
        "annotation.carried_thought": decision.carried_thought,
        "timestamp": frame / fps,
        "frame_index": frame,
        "episode_index": episode,
        "index": index,
        "task_index": task,
    }


def _schema(row: dict[str, Any]) -> pa.Schema:
    fixed = {
        "observation.state": pa.list_(pa.float32()),
        "action": pa.list_(pa.list_(pa.float32())),
        "annotation.texts": pa.list_(pa.string()),
        "annotation.crops": pa.list_(_IMAGE),
        "annotation.carried_thought": pa.string(),
        "timestamp": pa.float32(),
    }
    return pa.schema(
        [(key, fixed.get(key, _IMAGE if key.startswith("observation.images.") else pa.int64())) for key in row]
    )


def _write_rows(path: Path, rows: list[dict[str, Any]], number: int) -> None:
    file = path / f"data/chunk-000/file-{number:03d}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema(rows[0])), file)


def _write_meta(
    path: Path,
    first: Demonstration,
    tasks: dict[str, int],
    lengths: list[int],
    stats: _Stats,
    source: dict[str, Any],
) -> None:
    meta = path / "meta"
    (meta / "episodes/chunk-000").mkdir(parents=True)
    info = {
        "codebase_version": "v3.0",
        **source,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(tasks),
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": _features(first),
    }
    (meta / "info.json").write_text(json.dumps(info, indent=2) + "\n")
    (meta / "stats.json").write_text(json.dumps(stats.summary(), indent=2) + "\n")
    pq.write_table(pa.table({"task_index": list(tasks.values()), "task": list(tasks)}), meta / "tasks.parquet")
    ends = np.cumsum(lengths)
    episodes = {
        "episode_index": list(range(len(lengths))),
        "length": lengths,
        "dataset_from_index": (ends - lengths).tolist(),
        "dataset_to_index": ends.tolist(),
    }
    pq.write_table(pa.table(episodes), meta / "episodes/chunk-000/file-000.parquet")


def _features(first: Demonstration) -> dict[str, Any]:
    images = {
        f"observation.images.{i}": {
            "dtype": "image",
            "shape": list(image.shape),
            "names": ["height", "width", "channels"],
        }
        for i, image in enumerate(first.images)
    }
    return {
        **images,
        "observation.state": {"dtype": "float32", "shape": list(first.proprio.shape), "names": None},
        "action": {"dtype": "float32", "shape": list(first.actions.shape), "names": ["chunk", "action"]},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }


class _Stats:
    """Running mean, standard deviation, minimum and maximum of the action and of the state."""

    def __init__(self) -> None:
        self._values: dict[str, list[np.ndarray]] = {"action": [], "observation.state": []}

    def add(self, decision: Demonstration) -> None:
        self._values["action"] += list(decision.actions)
        self._values["observation.state"].append(decision.proprio)

    def summary(self) -> dict[str, Any]:
        out = {}
        for name, values in self._values.items():
            array = np.array(values, np.float64)
            moments = {"mean": array.mean(0), "std": array.std(0), "min": array.min(0), "max": array.max(0)}
            quantiles = dict(zip(("q01", "q99"), np.quantile(array, (0.01, 0.99), axis=0), strict=True))
            out[name] = {key: v.tolist() for key, v in {**moments, **quantiles}.items()} | {"count": [len(array)]}
        return out


def _encode(image: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _decode(image: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))


def text_corpus(demonstrations: DemonstrationSet) -> Iterator[str]:
    """Everything that the demonstrations say and are told, to train a tokenizer on."""
    for row in demonstrations.rows:
        yield demonstrations.tasks[row["task_index"]]
        yield from row["annotation.texts"]
