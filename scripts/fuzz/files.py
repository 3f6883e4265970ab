"""What is fuzzed in files of runs and data sets: answers, trajectories, pictures, videos, LeRobot, HDF5, parquet."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
from PIL import Image

from rlvla.annotation.answers import AnswerLog, checked
from rlvla.config import ReadConfig
from rlvla.data import dataset
from rlvla.data.dataset import DatasetError
from rlvla.data.read_hdf5 import open_hdf5
from rlvla.data.read_lerobot import open_lerobot
from rlvla.data.read_video import decode
from rlvla.data.rows import decode_picture
from rlvla.data.types import Demonstration
from rlvla.durable.trajectories import load_trajectories, save_trajectories
from rlvla.types import EndReason, TaskSpec, Trajectory
from target import FOLDER, refused, spread, target, written

NUM_FRAMES = 20
"""That are decoded: a small file may hold many."""
_REPLY = {"annotation": None, "error": "", "prompt_tokens": 0, "completion_tokens": 0}


@target(json.dumps({"decision": 0, "attempt": 1, "is_judge": False, "reply": _REPLY}).encode())
def answer_log(data: bytes) -> None:
    """What a kill left of a log of answers is read as far as it is whole; the rest is cut off."""
    for content in (data, b"".join(checked(line) + b"\n" for line in data.split(b"\n"))):
        file = written(content, "answers.log")
        with refused(ValueError, file):
            AnswerLog(file)
            size = file.stat().st_size
            AnswerLog(file)
            assert file.stat().st_size == size


def _trajectory() -> bytes:
    task = TaskSpec(suite="s", task_id=0, init_state_id=1, seed=2, instruction="push")
    save_trajectories(FOLDER / "seed.jsonl", [Trajectory(task=task, turns=(), end=EndReason.SUCCESS, num_env_steps=3)])
    return (FOLDER / "seed.jsonl").read_bytes()


@target(_trajectory(), max_bytes=2048)
def trajectories(data: bytes) -> None:
    """A file of trajectories is refused with its name, or read."""
    file = written(data, "trajectories.jsonl")
    with refused(ValueError, file):
        load_trajectories(file)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@target(_png())
def picture(data: bytes) -> None:
    """A picture is refused by the name of its place, or is [H, W, 3] uint8."""
    with refused(DatasetError, "here: "):
        pixels = decode_picture(data, "here")
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)


def _video(codec: str) -> bytes:
    """Three frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=10, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for grey in (0, 100, 200):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@target(_video("mpeg4"), _video("h264"))
def video(data: bytes) -> None:
    """A video is refused by its name, or gives pictures with their times."""
    file = written(data, "video.mp4")
    with refused(DatasetError, file):
        for time_s, frame in islice(decode(file), NUM_FRAMES):
            assert math.isfinite(time_s)
            assert frame.dtype == np.uint8
            assert frame.shape[2:] == (3,)


_LEROBOT = (
    b'{"codebase_version": "v2.1", "fps": 10, "chunks_size": 1000, "features": {"action": {"dtype": "float32"}, '
    b'"observation.images.a": {"dtype": "image"}, "observation.state": {"dtype": "float32"}}, '
    b'"data_path": "data/{episode_chunk:03d}/{episode_index:06d}.parquet"}',
    b'{"task_index": 0, "task": "push"}',
    b'{"episode_index": 0, "length": 3}',
)


@target(b"\0".join(_LEROBOT))
def lerobot(data: bytes) -> None:
    """The `meta` folder of a LeRobot data set is refused by name, or leads to no file outside."""
    spread(data, *(f"lerobot/meta/{name}" for name in ("info.json", "tasks.jsonl", "episodes.jsonl")))
    _drain(open_lerobot, FOLDER / "lerobot")


_ARRAYS = {"actions": (3, 7), "states": (3, 9), "obs/ee_pos": (3, 3), "obs/ee_ori": (3, 3)}
_ARRAYS |= {"obs/gripper_states": (3, 2), "obs/joint_states": (3, 7), "obs/agentview_rgb": (3, 4, 4, 3)}


@target(b'{"env_kwargs": {"control_freq": 20}}', max_bytes=64)
def hdf5(data: bytes) -> None:
    """A whole HDF5 file with strange content is refused by name, or gives sound episodes.

    Not a file of strange bytes: HDF5 itself loops for ever over some of those.
    """
    rng, file = random.Random(data), FOLDER / "push_it_demo.hdf5"
    with h5py.File(file, "w") as handle:
        demo = handle.create_group(rng.choice(("data/demo_0", "data/demo_0", "data/demo_0", "data/x", "demo_0")))
        for name, shape in _ARRAYS.items():
            _put(demo, name, shape, rng)
        texts = (data.hex(), bytes(byte for byte in data if 0 < byte < 128))
        for name in ("problem_info", "env_args", "num_demos", "macros_image_convention"):
            if "data" in handle and rng.random() < 0.3:
                handle["data"].attrs[name] = rng.choice((*texts, 1, 1.5, [1]))
    _drain(open_hdf5, file)


def _put(demo: Any, name: str, shape: tuple[int, ...], rng: random.Random) -> None:
    """An array as it should be, mostly; else of another shape, type or value, a link, a group, or nothing."""
    good = np.full(shape, rng.choice((0.5, -0.5)), np.uint8 if name.endswith("rgb") else np.float64)
    if rng.random() < 0.8:
        demo[name] = good
        return
    match rng.randrange(8):
        case 0:
            demo[name] = good[: rng.randrange(3)]
        case 1:
            demo[name] = good.reshape(-1)
        case 2:
            demo[name] = good.astype(rng.choice(("S3", "c8", "i8", "f2", "?")))
        case 3:
            demo[name] = np.full(shape, rng.choice((math.nan, math.inf, -1e300)))
        case 4:
            demo[name] = h5py.ExternalLink("elsewhere.hdf5", "/data")
        case 5:
            demo.create_group(name)
        case 6:
            demo.create_dataset(name, (1 << 40, *shape[1:]), chunks=(1, *shape[1:]), dtype=good.dtype)


def _drain(opener: Callable[[Path, ReadConfig], Any], path: Path) -> None:
    with refused(DatasetError, path):
        for episode in opener(path, ReadConfig(drop_noops=False)).episodes:
            assert np.isfinite(episode.actions).all()


def _parquet() -> bytes:
    """Two decisions of one episode, in a data set that is there from now on."""
    image = np.zeros((8, 8, 3), np.uint8)
    decision = Demonstration(
        instruction="press",
        images=(image,),
        proprio=np.zeros(1, np.float32),
        texts=("<think>a</think><tool>{}</tool>", "<think>b</think>"),
        crops=(image,),
        actions=np.zeros((2, 3), np.float32),
    )
    dataset.write(FOLDER / "parquet", [[decision, decision]], robot="test", fps=2.0)
    return (FOLDER / "parquet/data/chunk-000/file-000.parquet").read_bytes()


@target(_parquet(), max_bytes=16384)
def parquet(data: bytes) -> None:
    """Rows of our own data set are refused by the name of file or episode, or can be trained on."""
    written(data, "parquet/data/chunk-000/file-000.parquet")
    with refused(DatasetError, FOLDER / "parquet"):
        read = dataset.read(FOLDER / "parquet")
        assert all(math.isfinite(read[i].actions.sum()) for i in range(len(read)))
