"""Writes annotated data sets as the engine does, row by row, with whatever words and numbers a test wants."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlvla.data.rows import COLUMNS, IMAGE, PLACE
from rlvla.pictures import to_png


def png(image: np.ndarray) -> dict[str, Any]:
    """[H, W, 3] as the data set keeps it."""
    return {"bytes": to_png(image), "path": None}


GREY = png(np.full((8, 8, 3), 128, np.uint8))


def row(
    *thoughts: str,
    boxes: Sequence[tuple[int, int, int, int]] = (),
    is_key: bool = False,
    episode: int = 0,
    decision: int = 0,
    task: int = 0,
    progress: float | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """One decision with grey pictures; `columns` are further columns, `provenance_model` for `provenance.model`."""
    return {
        "observation.images.0": GREY,
        "observation.state": [0.0],
        "action": [[0.0]],
        "annotation.texts": list(thoughts),
        "annotation.crops": [GREY for _ in boxes],
        "annotation.thoughts": list(thoughts),
        "annotation.boxes": [list(box) for box in boxes],
        "annotation.box_images": [0 for _ in boxes],
        "annotation.subtask": "",
        "annotation.subject": "",
        "annotation.gripper": "",
        "annotation.next_gripper": "",
        "annotation.progress": progress,
        "annotation.is_key_frame": is_key,
        "annotation.decision_index": decision,
        "provenance.annotator": "openai",
        "provenance.model": "a-model",
        "provenance.prompt_hash": "abc123",
        "provenance.seed": 0,
        "provenance.attempts": 1,
        "provenance.rejected": [],
        "provenance.checks": ["markup", "box"],
        "provenance.prompt_tokens": 0,
        "provenance.completion_tokens": 0,
        "episode_index": episode,
        "frame_index": decision,
        "task_index": task,
        **{key.replace("_", ".", 1): value for key, value in columns.items()},
    }


def write_rows(
    folder: Path, rows: Iterable[dict[str, Any]], tasks: Sequence[str] = ("press the pad",), *, rows_per_file: int = 3
) -> Path:
    """Write a data set with these columns and return its folder."""
    rows = list(rows)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    kinds = COLUMNS | PLACE
    schema = pa.schema([(name, kinds.get(name, IMAGE)) for name in rows[0]])
    for number, start in enumerate(range(0, len(rows), rows_per_file)):
        table = pa.Table.from_pylist(rows[start : start + rows_per_file], schema=schema)
        pq.write_table(table, folder / f"data/chunk-000/file-{number:03d}.parquet")
    pq.write_table(pa.table({"task_index": range(len(tasks)), "task": list(tasks)}), folder / "meta/tasks.parquet")
    (folder / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0"}))
    return folder


_POOLS: list[pa.MemoryPool] = []
"""Arrow's buffers outlive a test, and must not outlive the pool that they come from."""


def peak_memory(run: Callable[[], None]) -> int:
    """Bytes that Python and Arrow hold at most while this runs, beyond what they held before."""
    usual = pa.default_memory_pool()
    _POOLS.append(pool := pa.proxy_memory_pool(usual))
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
