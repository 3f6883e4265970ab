"""Recorded episodes for scripts/benchmark_annotate.py: a LeRobot v3 folder, pictures in the tables as PNG.

An episode is a pick and place: the gripper closes after 40 % of the steps and opens after 80 %, so that at stride 1
twice `chunk_length` of its decisions are key frames. Pictures look like a simulator's: a textured table, three things,
one of which moves.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlvla.durable.files import appear_whole

FPS = 20
EPISODES_PER_FILE = 10
NUM_PICTURES = 50
"""Different ones of a size; episodes take them in turn, since drawing them is not what is measured."""
CAMERA = "observation.images.image"
INSTRUCTION = "put the bowl on the plate"
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [
        (CAMERA, _IMAGE),
        ("observation.state", pa.list_(pa.float32(), 8)),
        ("action", pa.list_(pa.float32(), 7)),
        ("timestamp", pa.float32()),
        ("frame_index", pa.int64()),
        ("episode_index", pa.int64()),
        ("index", pa.int64()),
        ("task_index", pa.int64()),
    ]
)


def write_episodes(root: Path, *, num_episodes: int, length: int, side: int) -> Path:
    """Write a data set.

    Args:
        root: folder to make.
        num_episodes: at least 1.
        length: of each, env steps.
        side: of the pictures, pixels.
    """
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    pictures = [{"bytes": _png(picture(t / NUM_PICTURES, side)), "path": None} for t in range(NUM_PICTURES)]
    for start in range(0, num_episodes, EPISODES_PER_FILE):
        episodes = range(start, min(start + EPISODES_PER_FILE, num_episodes))
        rows = pa.concat_tables([_episode(i, length, pictures) for i in episodes])
        pq.write_table(rows, root / f"data/chunk-000/file-{start // EPISODES_PER_FILE:03d}.parquet")
    tasks = pd.DataFrame({"task_index": [0]}, index=pd.Index([INSTRUCTION], name="task"))
    tasks.to_parquet(root / "meta/tasks.parquet")
    numbers = np.arange(num_episodes)
    places = {
        "episode_index": numbers,
        "length": np.full(num_episodes, length),
        "data/chunk_index": np.zeros(num_episodes, int),
        "data/file_index": numbers // EPISODES_PER_FILE,
    }
    pq.write_table(pa.table(places), root / "meta/episodes/chunk-000/file-000.parquet")
    with appear_whole(root / "meta/info.json") as file:
        file.write(json.dumps(_info(num_episodes, length, side)).encode())
    return root


def picture(progress: float, side: int) -> np.ndarray:
    """[side, side, 3] uint8: what the camera sees after a share of the task."""
    down, right = np.mgrid[:side, :side] / side
    rng = np.random.default_rng(0)
    grain = np.kron(rng.normal(0, 4, (side // 4, side // 4)), np.ones((4, 4))) + rng.normal(0, 1, (side, side))
    wood = 40 * down + 12 * np.sin(40 * right + 3 * np.sin(9 * down)) + grain
    scene = np.stack([150 + wood, 110 + wood, 70 + wood], axis=-1)
    for colour, x, y, radius in (
        ((220, 220, 225), 0.72, 0.6, 0.16),
        ((60, 60, 70), 0.3 + 0.42 * progress, 0.55, 0.09),
        ((170, 60, 40), 0.4, 0.25, 0.07),
    ):
        distance = np.hypot(right - x, down - y) / radius
        shade = np.array(colour) * (1.15 - 0.4 * distance[..., None])
        scene = np.where(distance[..., None] < 1, shade, scene)
    return np.clip(scene, 0, 255).astype(np.uint8)


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _episode(number: int, length: int, pictures: Sequence[dict[str, Any]]) -> pa.Table:
    rng = np.random.default_rng(number)
    frames = np.arange(length)
    actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    actions[:, -1] = np.where((frames >= 0.4 * length) & (frames < 0.8 * length), 1, -1)
    columns = {
        CAMERA: [pictures[t * len(pictures) // length] for t in range(length)],
        "observation.state": list(rng.normal(size=(length, 8)).astype(np.float32)),
        "action": list(actions),
        "timestamp": frames / FPS,
        "frame_index": frames,
        "episode_index": np.full(length, number),
        "index": number * length + frames,
        "task_index": np.zeros(length, int),
    }
    return pa.Table.from_pydict(columns, schema=_SCHEMA)


def _info(num_episodes: int, length: int, side: int) -> dict[str, Any]:
    feature = partial(dict, dtype="float32", names=None)
    return {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "total_episodes": num_episodes,
        "total_frames": num_episodes * length,
        "fps": FPS,
        "chunks_size": 1000,
        "splits": {"train": f"0:{num_episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": {
            CAMERA: {"dtype": "image", "shape": [side, side, 3], "names": ["height", "width", "channel"]},
            "observation.state": feature(shape=[8]),
            "action": feature(shape=[7]),
        },
    }
