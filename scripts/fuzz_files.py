"""What is fuzzed in files of runs and data sets: answers, trajectories, pictures, videos, LeRobot, HDF5, parquet."""

from __future__ import annotations

import atexit
import io
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

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

FOLDER = Path(tempfile.mkdtemp(prefix="rlvla-fuzz-"))
"""Of the files that readers are given."""
atexit.register(shutil.rmtree, FOLDER)
_READ = ReadConfig(drop_noops=False)
_NUM_FRAMES = 20
"""That are decoded: a small file may hold many."""


def spread(data: bytes, folder: Path, names: Sequence[str]) -> None:
    """Write an input's parts, which a zero byte ends, into files; there is no file of a part that is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = data.split(b"\0")
    for number, name in enumerate(names):
        if content := b"".join(parts[number : number + 1]):
            (folder / name).write_bytes(content)
        else:
            (folder / name).unlink(missing_ok=True)


def answer_log(data: bytes) -> None:
    """What a kill left of a log of answers is read as far as it is whole; the rest is cut off."""
    file = FOLDER / "answers.log"
    lines = data.split(b"\n")
    for content in (data, b"".join(checked(line) + b"\n" for line in lines)):
        file.write_bytes(content)
        try:
            AnswerLog(file)
        except ValueError as error:
            assert str(error).startswith(str(file))
            continue
        size = file.stat().st_size
        AnswerLog(file)
        assert file.stat().st_size == size


def trajectories(data: bytes) -> None:
    """A file of trajectories is refused with its name, or read."""
    file = FOLDER / "trajectories.jsonl"
    file.write_bytes(data)
    try:
        load_trajectories(file)
    except ValueError as error:
        assert str(error).startswith(str(file))


def picture(data: bytes) -> None:
    """A picture is refused by the name of its place, or is [H, W, 3] uint8."""
    try:
        pixels = decode_picture(data, "here")
    except DatasetError as error:
        assert str(error).startswith("here: ")
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def video(data: bytes) -> None:
    """A video is refused by its name, or gives pictures with their times."""
    file = FOLDER / "video.mp4"
    file.write_bytes(data)
    try:
        for time_s, frame in islice(decode(file), _NUM_FRAMES):
            assert math.isfinite(time_s)
            assert frame.dtype == np.uint8
            assert frame.shape[2:] == (3,)
    except DatasetError as error:
        assert str(error).startswith(f"{file}: ")


def lerobot(data: bytes) -> None:
    """The `meta` folder of a LeRobot data set is refused by name, or leads to no file outside."""
    folder = FOLDER / "lerobot"
    spread(data, folder / "meta", ("info.json", "tasks.jsonl", "episodes.jsonl"))
    _drain(open_lerobot, folder)


def hdf5(data: bytes) -> None:
    """A whole HDF5 file with strange content is refused by name, or gives sound episodes.

    Not a file of strange bytes: HDF5 itself loops for ever over some of those.
    """
    import h5py

    rng = random.Random(data)
    file = FOLDER / "push_it_demo.hdf5"
    with h5py.File(file, "w") as handle:
        demo = handle.create_group(rng.choice(("data/demo_0", "data/demo_0", "data/demo_0", "data/x", "demo_0")))
        for name, shape in _HDF5_ARRAYS.items():
            _put(demo, name, shape, rng)
        for name in ("problem_info", "env_args", "num_demos", "macros_image_convention"):
            if "data" in handle and rng.random() < 0.3:
                handle["data"].attrs[name] = rng.choice(
                    (data.hex(), bytes(byte for byte in data if 0 < byte < 128), 1, 1.5, [1])
                )
    _drain(open_hdf5, file)


_HDF5_ARRAYS = {
    "actions": (3, 7),
    "states": (3, 9),
    "obs/ee_pos": (3, 3),
    "obs/ee_ori": (3, 3),
    "obs/gripper_states": (3, 2),
    "obs/joint_states": (3, 7),
    "obs/agentview_rgb": (3, 4, 4, 3),
}


def _put(demo: Any, name: str, shape: tuple[int, ...], rng: random.Random) -> None:
    """An array as it should be, mostly; else of another shape, type or value, a link, a group, or nothing."""
    import h5py

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
        case _:
            pass


def _drain(opener: Callable[[Path, ReadConfig], Any], path: Path) -> None:
    try:
        for episode in opener(path, _READ).episodes:
            assert np.isfinite(episode.actions).all()
    except DatasetError as error:
        assert str(path) in str(error)


def parquet(data: bytes) -> None:
    """Rows of our own data set are refused by the name of file or episode, or can be trained on."""
    folder = FOLDER / "parquet"
    if not folder.exists():
        dataset.write(folder, [[_decision(0), _decision(1)]], robot="test", fps=2.0)
    (folder / "data/chunk-000/file-000.parquet").write_bytes(data)
    try:
        read = dataset.read(folder)
        decisions = [read[i] for i in range(len(read))]
    except DatasetError as error:
        assert str(folder) in str(error)
        return
    assert all(math.isfinite(decision.actions.sum()) for decision in decisions)


def _decision(value: int) -> Demonstration:
    image = np.full((8, 8, 3), value, np.uint8)
    return Demonstration(
        instruction="press",
        images=(image,),
        proprio=np.array([value], np.float32),
        texts=("<think>a</think><tool>{}</tool>", "<think>b</think>"),
        crops=(image,),
        actions=np.full((2, 3), value, np.float32),
    )


def png_seed() -> bytes:
    """A picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet_seed() -> bytes:
    """Two decisions of one episode."""
    folder = Path(tempfile.mkdtemp(dir=FOLDER)) / "seed"
    dataset.write(folder, [[_decision(0), _decision(1)]], robot="test", fps=2.0)
    return (folder / "data/chunk-000/file-000.parquet").read_bytes()


def trajectory_seed() -> bytes:
    """A line."""
    file = FOLDER / "seed.jsonl"
    task = TaskSpec(suite="s", task_id=0, init_state_id=1, seed=2, instruction="push")
    save_trajectories(file, [Trajectory(task=task, turns=(), end=EndReason.SUCCESS, num_env_steps=3)])
    return file.read_bytes()


def lerobot_seed() -> bytes:
    """The three files of `meta`, for `spread`."""
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "chunks_size": 1000,
        "data_path": "data/{episode_chunk:03d}/{episode_index:06d}.parquet",
        "features": {"observation.images.a": {"dtype": "image"}, "action": {"dtype": "float32"}},
    }
    info["features"]["observation.state"] = {"dtype": "float32"}
    task, episode = {"task_index": 0, "task": "push"}, {"episode_index": 0, "length": 3}
    return b"\x00".join(json.dumps(part).encode() for part in (info, task, episode))


def video_seed(codec: str) -> bytes:
    """Three frames."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=10, options={"threads": "1"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for grey in (0, 100, 200):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
