"""What is fuzzed: each target turns bytes into the input of one reader, and asserts what that reader promises.

A reader of what a model or a stranger wrote either returns something sound or raises its documented error. What else
it raises is a finding, and so is an AssertionError here.
"""

from __future__ import annotations

import io
import json
import math
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from rlvla import dataset
from rlvla.actions import QuantileCodec
from rlvla.annotation import schema
from rlvla.annotation.answers import AnswerLog, checked
from rlvla.config import EvaluateConfig, GRPOConfig, ReadConfig, to_dict
from rlvla.config_file import ConfigError, explain, parse_yaml
from rlvla.dataset import DatasetError
from rlvla.dataset_rows import decode_picture
from rlvla.markup import MARKS, ToolCall, parse, parse_call, parse_text, split_text
from rlvla.models.openvla.shards import CheckpointError, shard_names
from rlvla.prompt import parse_settings
from rlvla.read_hdf5 import open_hdf5
from rlvla.read_lerobot import open_lerobot
from rlvla.storage import load_trajectories, save_trajectories
from rlvla.tools import call_tool, zoom_in
from rlvla.types import Annotation, Demonstration, EndReason, Observation, SegmentKind, TaskSpec, Trajectory

FOLDER = Path(tempfile.mkdtemp(prefix="rlvla-fuzz-"))
"""Of the files that some readers are given; removed by `scripts/fuzz.py`."""
READ = ReadConfig(drop_noops=False)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader."""

    run: Callable[[bytes], None]
    """Raises on a finding."""
    seeds: tuple[bytes, ...]
    """Good inputs to start from."""
    tokens: tuple[str, ...] = ()
    """Words that inputs are likely to hold."""
    max_bytes: int = 4096
    """Of an input."""
    share: int
    """Of the runs that are asked for, relative to the other targets: those that write a file are slow."""


def _text(data: bytes) -> str:
    """Any text, half surrogate pairs included: a JSON escape makes such, too."""
    return data.decode("utf-8", "surrogateescape")


def markup(data: bytes) -> None:
    """Any text and any sequence of marks gives spans that tile it; a text is split without loss."""
    text = _text(data)
    pieces, symbols = split_text(text)
    assert "".join(pieces) == text
    for sequence in (symbols, tuple((*MARKS, None)[byte % 9] for byte in data)):
        spans = parse(sequence)
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == len(sequence)
        assert all((span.kind is SegmentKind.MALFORMED) == bool(span.error) for span in spans)
    assert len(parse_text(text)) == len(parse(symbols))


_OBSERVATION = Observation(
    images=(np.zeros((8, 8, 3), np.uint8),),
    proprio=np.zeros(1, np.float32),
    instruction="",
    zoom=lambda image, box: np.zeros((8, 8, 3), np.uint8),
)


def calls(data: bytes) -> None:
    """A call is run, or refused with a text that a tokenizer takes; a box is then sound."""
    text = _text(data)
    boxed = json.dumps({"name": "zoom_in", "arguments": {"image": len(data) % 3 - 1, "bbox": _integers(data)}})
    for call in (text, f'{{"name": "zoom_in", "arguments": {text}}}', boxed):
        parsed = parse_call(call)
        assert isinstance(parsed, ToolCall) or parsed.startswith("error: ")
        result, box = call_tool({"zoom_in": zoom_in}, _OBSERVATION, call)
        if isinstance(result, str):
            assert result.startswith("error: ")
            assert len(result.encode()) < 500
            assert box is None
        else:
            assert result.dtype == np.uint8
            assert box is not None
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= 1000
            assert 0 <= y1 < y2 <= 1000


def _integers(data: bytes) -> list[int]:
    """Four of them from 8 bytes, mostly near the range of a box; any number of them from fewer."""
    return [value % 1200 - 100 for (value,) in struct.iter_unpack("<H", data[: len(data) // 2 * 2][:8])]


def actions(data: bytes) -> None:
    """A codec is refused or sound: it gives bins in its range for any finite chunk, and finite actions for them."""
    num_bins, chunk_length, gripper, *_ = (*data[:3], 16, 2, 0)
    floats = [value for (value,) in struct.iter_unpack("<d", data[3 : 3 + (len(data) - 3) // 8 * 8])]
    num_dims = max(1, min(len(floats) // 3, 8))
    low, high = tuple(floats[:num_dims]), tuple(floats[num_dims : 2 * num_dims])
    try:
        codec = QuantileCodec(
            low=low,
            high=high,
            num_bins=num_bins,
            chunk_length=chunk_length % 4,
            gripper_dim=gripper - 4 if gripper < 8 else None,
        )
    except ValueError:
        return
    chunk = np.resize(np.array(floats[2 * num_dims :] or [0.0]), codec.chunk_shape)
    try:
        bins = codec.encode(chunk)
    except ValueError:
        assert not np.isfinite(chunk).all()
        return
    assert np.isfinite(chunk).all()
    assert bins.min() >= 0
    assert bins.max() < num_bins
    decoded = codec.decode(bins)
    assert decoded.shape == codec.chunk_shape
    assert np.isfinite(decoded).all()
    assert (decoded >= np.float32(low)).all()
    assert (decoded <= np.float32(high)).all()


_CONFIGS = {cls: TypeAdapter(cls) for cls in (GRPOConfig, EvaluateConfig)}


def config(data: bytes) -> None:
    """A YAML is refused with the file's name, or gives a config that can be written down."""
    text = _text(data)
    for cls, adapter in _CONFIGS.items():
        try:
            values = parse_yaml(text, "run.yaml")
        except ConfigError as error:
            assert str(error).startswith("run.yaml: ")
            return
        try:
            json.dumps(to_dict(adapter.validate_python(values)), allow_nan=True)
        except ValidationError as error:
            assert all(line.strip() for line in explain(error, cls, "run.yaml").splitlines())


def checkpoint(data: bytes) -> None:
    """A policy's settings, its codec and an index of weights are refused, or name no file elsewhere."""
    try:
        settings = parse_settings(data, "rlvla_policy.json")
        QuantileCodec.from_dict(settings["codec"])
    except ValueError as error:
        assert str(error)
    try:
        names = shard_names(data, "index.json")
    except CheckpointError:
        return
    assert all("/" not in name and name.endswith(".safetensors") for name in names)


def answer(data: bytes) -> None:
    """A model's answer is an annotation that a file can hold, or a complaint."""
    text = _text(data)
    for is_key in (True, False):
        read = schema.read(text, is_key=is_key, num_images=2)
        if isinstance(read, Annotation):
            assert all(thought.encode() and thought == " ".join(thought.split()) for thought in read.thoughts)
            assert 0 <= read.progress <= 1
            assert all(0 <= image < 2 and all(0 <= v <= 1000 for v in box) for image, box in read.looks)
        else:
            assert read


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


_META = ("info.json", "tasks.jsonl", "episodes.jsonl")


def lerobot(data: bytes) -> None:
    """The `meta` folder of a LeRobot data set is refused by name, or leads to no file outside."""
    folder = FOLDER / "lerobot"
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    parts = data.split(b"\x00")
    for name, content in zip(_META, [*parts, b"", b""], strict=False):
        (folder / "meta" / name).write_bytes(content)
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
                    (data.hex(), _text(data).encode("ascii", "ignore").replace(b"\0", b""), 1, 1.5, [1])
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
        for episode in opener(path, READ).episodes:
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


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _parquet_seed() -> bytes:
    folder = Path(tempfile.mkdtemp(dir=FOLDER)) / "seed"
    dataset.write(folder, [[_decision(0), _decision(1)]], robot="test", fps=2.0)
    return (folder / "data/chunk-000/file-000.parquet").read_bytes()


def _trajectory_seed() -> bytes:
    file = FOLDER / "seed.jsonl"
    task = TaskSpec(suite="s", task_id=0, init_state_id=1, seed=2, instruction="push")
    save_trajectories(file, [Trajectory(task=task, turns=(), end=EndReason.SUCCESS, num_env_steps=3)])
    return file.read_bytes()


def _lerobot_seed() -> bytes:
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


def _answers() -> tuple[bytes, ...]:
    plain = {"subtask": "reach", "subject": "cup", "gripper": "open", "progress": 10}
    key = plain | {"observation": "a cup", "image": 0, "bbox": [0, 1, 500, 1000], "conclusion": "go"}
    return json.dumps(key).encode(), json.dumps(plain | {"thought": "go on"}).encode()


_REPLY = {"annotation": None, "error": "", "prompt_tokens": 0, "completion_tokens": 0}
_MARKUP = (
    '<think>a cup</think><tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [1, 2, 300, 400]}}</tool>',
    "<think>go</think><act>0 1 2</act>",
)
_SETTINGS = {"codec": {"low": [-1.0], "high": [1.0], "num_bins": 16, "chunk_length": 2, "gripper_dim": None}}
_JSON = ("{", "}", "[", "]", '"', ":", ",", "null", "true", "NaN", "Infinity", "1e999", "\\ud800", "-1", "9" * 400)

TARGETS = {
    "markup": Target(
        run=markup, share=200, max_bytes=1024, seeds=tuple(text.encode() for text in _MARKUP), tokens=MARKS
    ),
    "calls": Target(
        run=calls,
        share=300,
        max_bytes=1200,
        seeds=(
            _MARKUP[0].partition("<tool>")[2].removesuffix("</tool>").encode(),
            b'{"image": 0, "bbox": [0, 0, 100, 100]}',
            b"\x10\x00\x10\x00\xff\x02\xff\x02",
        ),
        tokens=(*_JSON, '"name"', '"arguments"', '"bbox"', '"image"', "zoom_in"),
    ),
    "actions": Target(
        run=actions,
        share=200,
        max_bytes=512,
        seeds=(b"\x10\x02\x09" + struct.pack("<9d", -1, -2, 0, 1, 2, 0, 0.5, math.nan, math.inf),),
    ),
    "answer": Target(run=answer, share=400, max_bytes=1024, seeds=_answers(), tokens=(*_JSON, '"bbox"', '"thought"')),
    "config": Target(
        run=config,
        share=24,
        seeds=(
            b"num_steps: 3\nlearner: {lr: 1e-6, lora: {rank: 4}}\nreward: [{fn: success, weight: 1.0}]\n",
            b"episode: {temperature: 0.6, mode: act}\nenv: {id: a, kwargs: {x: [1, {y: .nan}]}, tasks: [press]}\n",
        ),
        tokens=(
            "&a",
            "*a",
            "<<",
            "!!python/object",
            "? ",
            "- ",
            "2001-99-99",
            "!!int",
            "|",
            "group_size",
            ".inf",
            "0o7",
        ),
        max_bytes=512,
    ),
    "checkpoint": Target(
        run=checkpoint,
        share=400,
        max_bytes=1024,
        seeds=(
            json.dumps(_SETTINGS | {"carry_thought": False, "trained_suites": ["s"]}).encode(),
            b'{"weight_map": {"a": "model-1.safetensors", "b": "../x.safetensors"}}',
        ),
        tokens=(*_JSON, "../", '"codec"', "num_bins", "parallel"),
    ),
    "answer_log": Target(
        run=answer_log,
        share=3,
        seeds=(json.dumps({"decision": 0, "attempt": 1, "reply": _REPLY}).encode(),),
        tokens=(*_JSON, '"decision"', '"attempt"', '"reply"'),
    ),
    "trajectories": Target(
        run=trajectories,
        share=150,
        max_bytes=2048,
        seeds=(_trajectory_seed(),),
        tokens=(*_JSON, '"turns"', '"end"', "\n"),
    ),
    "picture": Target(run=picture, share=300, seeds=(_png(),), tokens=("IHDR", "IDAT", "PLTE", "tRNS", "IEND")),
    "lerobot": Target(
        run=lerobot,
        share=20,
        seeds=(_lerobot_seed(),),
        tokens=(*_JSON, "v2.0", "v3.0", "{0}", "../", "{episode_index:99d}"),
    ),
    "parquet": Target(run=parquet, share=2, seeds=(_parquet_seed(),), max_bytes=16384),
    "hdf5": Target(run=hdf5, share=1, seeds=(b'{"env_kwargs": {"control_freq": 20}}',), max_bytes=64),
}
"""By name, in the order in which they are run."""
