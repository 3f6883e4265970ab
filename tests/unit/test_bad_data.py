"""Data that is damaged, forged or simply wrong: refused with the file and the episode named."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlvla.annotation.answers import AnswerLog, checked
from rlvla.config import ReadConfig
from rlvla.data import dataset
from rlvla.data.dataset import DatasetError
from rlvla.data.read_lerobot import open_lerobot
from rlvla.data.rows import decode_picture
from rlvla.pictures import MAX_PIXELS
from rlvla.policies.models.openvla.shards import CheckpointError, shard_names
from rlvla.policies.thinker.actions import BinCodec, QuantileCodec
from rlvla.policies.thinker.prompt import PolicyProcessor, parse_settings
from rlvla.policies.thinker.tools import call_tool
from rlvla.types import Demonstration
from tests.unit.recorded import png, raw, write_hdf5, write_v2, write_v3

needs_h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs h5py: make setup")


# --- our own data set


def decision(value: int) -> Demonstration:
    image = np.full((8, 8, 3), value, np.uint8)
    return Demonstration(
        instruction="press",
        images=(image,),
        proprio=np.array([value], np.float32),
        texts=("<think>a</think><tool>{}</tool>", "<think>b</think>"),
        crops=(image,),
        actions=np.full((2, 3), value, np.float32),
    )


def write_set(tmp_path: Path) -> tuple[Path, Path]:
    """Two episodes of two and one decisions; the folder, and the file of the rows."""
    folder = tmp_path / "demos"
    dataset.write(folder, [[decision(0), decision(1)], [decision(2)]], robot="test", fps=2.0)
    return folder, folder / "data/chunk-000/file-000.parquet"


def edit(file: Path, row: int, **values: Any) -> None:
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[row] |= values
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        (1, {"action": [[0, NAN, 0], [0, 0, 0]]}, "episode 0, frame 1: action holds NaN or infinity"),
        (1, {"action": [[0, float("inf"), 0], [0, 0, 0]]}, "episode 0, frame 1: action holds NaN or infinity"),
        (1, {"observation.state": [NAN]}, r"episode 0, frame 1: observation\.state holds NaN or infinity"),
        (1, {"action": [[0, 0, 0], [0, 0]]}, "episode 0, frame 1: action is not a rectangle of numbers with 2 axes"),
        (
            2,
            {"action": [[0, 0, 0]]},
            r"episode 1, frame 0: action and .* shapes \(\(1, 3\), \(1,\)\), before \(\(2, 3\)",
        ),
        (1, {"action": None}, "episode 0, frame 1: action is not a rectangle"),
        (1, {"observation.state": []}, r"episode 0, frame 1: observation\.state is not a rectangle"),
        (1, {"observation.images.0": None}, r"episode 0, frame 1: observation\.images\.0 has no picture"),
        (
            1,
            {"annotation.crops": []},
            r"episode 0, frame 1: annotation\.texts has to hold one text more than annotation\.crops",
        ),
        (1, {"frame_index": 2}, "episode 0, frame 1: frame_index is 2: a frame is missing or there twice"),
        (1, {"frame_index": 0}, "episode 0, frame 1: frame_index is 0: a frame is missing or there twice"),
        (2, {"episode_index": 0}, "episode 0, frame 2: frame_index is 0"),
        (0, {"episode_index": 1}, "episode 0, frame 0: frame_index is 1"),
        (1, {"task_index": 7}, r"episode 0, frame 1: task_index is 7, meta/tasks\.parquet has 1"),
        (1, {"task_index": -1}, "episode 0, frame 1: task_index is -1"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: int, values: dict[str, Any], message: str) -> None:
    folder, file = write_set(tmp_path)
    edit(file, row, **values)
    with pytest.raises(DatasetError, match=rf"demos, {message}"):
        dataset.read(folder)


def test_an_episode_that_comes_back_is_named(tmp_path: Path) -> None:
    folder, file = write_set(tmp_path)
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)
    with pytest.raises(DatasetError, match="demos: episode 0 appears a second time"):
        dataset.read(folder)


def test_a_row_without_a_column_is_named(tmp_path: Path) -> None:
    folder, file = write_set(tmp_path)
    pq.write_table(pq.read_table(file).drop_columns(["episode_index"]), file)
    with pytest.raises(DatasetError, match=r"file-000\.parquet: no column episode_index"):
        dataset.read(folder)


NOISE = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize("content", [b"no picture", b"", png(NOISE)["bytes"][:100]], ids=["text", "nothing", "half"])
def test_a_damaged_picture_is_named_when_it_is_needed(tmp_path: Path, content: bytes) -> None:
    folder, file = write_set(tmp_path)
    edit(file, 1, **{"observation.images.0": {"bytes": content, "path": None}})
    demos = dataset.read(folder)
    assert demos[0].images[0].shape == (8, 8, 3)
    with pytest.raises(DatasetError, match=r"demos, episode 0, frame 1, observation\.images\.0: a picture cannot be"):
        demos[1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("meta/info.json", b"{", r"info\.json: damaged"),
        ("meta/info.json", b"[]", r"info\.json: damaged"),
        ("meta/info.json", b'{"suites": 3}', r"info\.json: suites is 3, need a list of names"),
        ("meta/tasks.parquet", b"PAR1", r"tasks\.parquet: damaged"),
    ],
)
def test_damaged_meta_data_is_named(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    folder, _ = write_set(tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        dataset.read(folder)


def test_tasks_without_words_are_named(tmp_path: Path) -> None:
    folder, _ = write_set(tmp_path)
    pq.write_table(pa.table({"task_index": [1], "task": ["press"]}), folder / "meta/tasks.parquet")
    with pytest.raises(DatasetError, match=r"tasks\.parquet: need a task in words for each task_index from 0 to 0"):
        dataset.read(folder)


# --- pictures


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_pictures_of_8_bits_are_read() -> None:
    for mode in ("L", "RGB", "RGBA", "P"):
        assert decode_picture(encoded(Image.new(mode, (3, 2))), "here").shape == (2, 3, 3)
    assert decode_picture(encoded(Image.new("RGB", (3, 2)), "JPEG"), "here").shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16))), "here: a picture has mode I;16, need 8 bits"),
        (encoded(Image.new("RGB", (4, 4)), "GIF"), "here: a picture cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "here: a picture cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "here: a picture cannot be decoded"),
    ],
)
def test_other_pictures_are_refused_unread(data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        decode_picture(data, "here")


@pytest.mark.parametrize("side", [5000, 30_000])
def test_a_small_file_of_a_huge_picture_is_refused(side: int) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DatasetError, match=rf"{MAX_PIXELS}|decompression bomb"):
            decode_picture(data, "here")


# --- LeRobot


def refused(root: Path, message: str, options: ReadConfig | None = None) -> None:
    with pytest.raises(DatasetError, match=message):
        list(open_lerobot(root, options or ReadConfig()).episodes)


RAW = [raw(0, 4), raw(1, 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": "fast"}, r"info\.json: .*fps Input should be a valid number"),
        ({"fps": -1}, r"info\.json: .*fps Input should be greater than 0"),
        ({"fps": NAN}, r"info\.json: .*fps"),
        ({"features": []}, r"info\.json: .*features Input should be an object"),
        ({"features": {"action": 3}}, r"info\.json: .*features\.action"),
        ({"chunks_size": "two"}, r"info\.json: .*chunks_size"),
        ({"chunks_size": -2}, r"info\.json: .*chunks_size Input should be greater than 0"),
        ({"data_path": "data/{0}.parquet"}, r"the path 'data/\{0\}\.parquet' may hold episode_chunk, episode_index"),
        ({"data_path": "{episode_index.real}"}, "may hold episode_chunk, episode_index"),
        ({"data_path": "{episode_index:999999999d}"}, "may hold episode_chunk, episode_index"),
        ({"data_path": "{episode_index!r}"}, "may hold episode_chunk, episode_index"),
        ({"data_path": "{episode_index"}, "is malformed"),
        ({"data_path": "../../{episode_index:06d}.parquet"}, "names a file outside of it"),
        ({"data_path": "/etc/passwd"}, "names a file outside of it, '/etc/passwd'"),
        ({"data_path": "data/\0"}, "names a file outside of it"),
    ],
)
def test_a_forged_description_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    root = write_v2(tmp_path / "set", RAW)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | change))
    refused(root, message)


def test_a_video_path_that_leads_outside_is_refused(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "set", RAW)
    info = json.loads((root / "meta/info.json").read_text())
    for feature in info["features"].values():
        feature["dtype"] = "video" if "shape" in feature and len(feature["shape"]) == 3 else feature["dtype"]
    (root / "meta/info.json").write_text(json.dumps(info | {"video_path": "../{video_key}_{episode_index:06d}.mp4"}))
    refused(root, "names a file outside of it, '../observation")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tasks.jsonl", b"\xff\xfe", r"tasks\.jsonl: not JSON"),
        ("tasks.jsonl", b"[1]\n", r"tasks\.jsonl: a line is no JSON object"),
        ("tasks.jsonl", b'{"task": "a", "task_index": [0]}\n', r"tasks\.jsonl: a task without words or task_index"),
        ("tasks.jsonl", b"[" * 100_000, r"tasks\.jsonl: not JSON"),
        ("episodes.jsonl", b'{"episode_index": "x", "length": 3}\n', r"an episode whose episode_index is 'x'"),
        ("episodes.jsonl", b'{"episode_index": 0, "length": -3}\n', r"an episode whose length is -3"),
        ("episodes.jsonl", b'{"episode_index": 0, "length": 1e400}\n', r"an episode whose length is inf"),
        ("info.json", b"[]", r"info\.json: missing, or not JSON that describes a data set"),
        ("info.json", b"\xff", r"info\.json: missing, or not JSON that describes a data set"),
    ],
)
def test_strange_meta_data_is_refused(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    root = write_v2(tmp_path / "set", RAW)
    (root / "meta" / file).write_bytes(content)
    refused(root, message)


def damage(file: Path, start: float, length: int = 64) -> None:
    """Overwrite some bytes at a share of the file's length."""
    content = bytearray(file.read_bytes())
    place = int(start * len(content))
    content[place : place + length] = b"\xaa" * length
    file.write_bytes(content)


@pytest.mark.parametrize("what", ["half", "footer", "body"])
def test_a_damaged_table_is_named(tmp_path: Path, what: str) -> None:
    root = write_v2(tmp_path / "set", RAW)
    file = root / "data/chunk-000/episode_000001.parquet"
    if what == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        damage(file, 0.97 if what == "footer" else 0.05)
    refused(root, r"episode_000001\.parquet")


def test_a_picture_of_16_bits_and_one_that_is_missing_are_named(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "set", RAW)
    file = root / "data/chunk-000/episode_000001.parquet"
    deep = encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16)))
    place = r"episode_000001\.parquet, episode 1, observation\.images\.image: "
    edit(file, 2, **{"observation.images.image": {"bytes": deep, "path": None}})
    refused(root, place + "a picture has mode I;16")
    edit(file, 2, **{"observation.images.image": None})
    refused(root, place + "a frame has no picture")


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
def test_actions_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    wrong = replace(RAW[1], actions=RAW[1].actions.copy())
    wrong.actions[2, 3] = value
    root = write_v3(tmp_path / "set", [RAW[0], wrong])
    refused(root, r"file-000\.parquet, episode 1: actions hold NaN or infinity at frame 2")


# --- HDF5


def edited_hdf5(tmp_path: Path, change: Callable[[Any], None]) -> Path:
    import h5py

    file = tmp_path / "push_it_demo.hdf5"
    write_hdf5(file, RAW, official=False)
    with h5py.File(file, "r+") as handle:
        change(handle)
    return file


def refused_hdf5(file: Path, message: str) -> None:
    from rlvla.data.read_hdf5 import open_hdf5

    with pytest.raises(DatasetError, match=message):
        list(open_hdf5(file, ReadConfig()).episodes)


def put(key: str, value: Any) -> Callable[[Any], None]:
    """Replaces something of demo_1."""

    def change(handle: Any) -> None:
        demo = handle["data/demo_1"]
        del demo[key]
        demo[key] = value

    return change


@needs_h5py
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", np.full((3, 7), NAN), "actions hold NaN or infinity at frame 0"),
        ("actions", np.full((3, 7), b"x"), r"actions holds \|S1, need numbers"),
        ("actions", np.zeros((3, 7), complex), "actions holds complex128, need numbers"),
        ("obs/agentview_rgb", np.zeros((2, 8, 8, 3), np.uint8), "2 of obs/agentview_rgb for 3 actions"),
        ("obs/agentview_rgb", np.zeros((3, 8, 8, 4), np.uint8), r"camera agentview is uint8 \[3, 8, 8, 4\]"),
        ("obs/agentview_rgb", np.zeros((3, 8, 8, 3), np.float32), "camera agentview is float32"),
        ("obs/agentview_rgb", np.zeros((3, 8, 8, 3), np.uint16), "camera agentview is uint16"),
    ],
)
def test_a_wrong_array_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    refused_hdf5(edited_hdf5(tmp_path, put(key, value)), rf"push_it_demo\.hdf5, demo_1: {message}")


@needs_h5py
def test_nothing_is_read_from_other_files(tmp_path: Path) -> None:
    import h5py

    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\x01" * 4096)
    for link in (h5py.ExternalLink("secret.hdf5", "/x"), h5py.SoftLink("/data/demo_0/actions")):
        refused_hdf5(
            edited_hdf5(tmp_path, put("actions", link)), "demo_1: actions is a link, which may lead into another"
        )

    def outside(handle: Any) -> None:
        del handle["data/demo_1/actions"]
        handle["data/demo_1"].create_dataset("actions", (3, 7), "u1", external=[(str(secret), 0, 21)])

    refused_hdf5(edited_hdf5(tmp_path, outside), "demo_1: actions lies in another file")

    def virtual(handle: Any) -> None:
        layout = h5py.VirtualLayout((3, 7), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "x", (3, 7))
        del handle["data/demo_1/actions"]
        handle["data/demo_1"].create_virtual_dataset("actions", layout)

    refused_hdf5(edited_hdf5(tmp_path, virtual), "demo_1: actions lies in another file")

    def group(handle: Any) -> None:
        del handle["data"]
        handle["data"] = h5py.ExternalLink("secret.hdf5", "/data")

    refused_hdf5(edited_hdf5(tmp_path, group), r"push_it_demo\.hdf5: data is a link")


@needs_h5py
def test_a_small_file_of_a_huge_array_is_refused(tmp_path: Path) -> None:
    def huge(handle: Any) -> None:
        del handle["data/demo_1/actions"]
        handle["data/demo_1"].create_dataset("actions", (1 << 40, 7), "f4", chunks=(1, 7))

    refused_hdf5(edited_hdf5(tmp_path, huge), r"demo_1: actions has shape \[1099511627776, 7\], more than")


@needs_h5py
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("problem_info", "{", "the attribute problem_info is not JSON"),
        ("problem_info", "[]", "the attribute problem_info is no JSON object"),
        ("problem_info", '{"language_instruction": 3}', "a language_instruction that is no text: 3"),
        ("env_args", '{"env_kwargs": {"control_freq": 0}}', "no control_freq above 0, but 0"),
        ("env_args", '{"env_kwargs": {"control_freq": NaN}}', "no control_freq above 0, but nan"),
        ("env_args", '{"env_kwargs": 3}', "no control_freq above 0"),
        ("num_demos", "many", "holds 2 demonstrations, and says many"),
    ],
)
def test_a_strange_attribute_is_named(tmp_path: Path, name: str, value: str, message: str) -> None:
    file = edited_hdf5(tmp_path, lambda handle: handle["data"].attrs.__setitem__(name, value))
    refused_hdf5(file, rf"push_it_demo\.hdf5: .*{message}")


@needs_h5py
def test_a_group_where_an_array_is_due_is_named(tmp_path: Path) -> None:
    def group(handle: Any) -> None:
        del handle["data/demo_1/actions"]
        handle["data/demo_1"].create_group("actions")

    refused_hdf5(edited_hdf5(tmp_path, group), "demo_1: actions is no array")


# --- checkpoints, trajectories, answers, calls


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"\xff", "Invalid JSON"),
        (b'{"codec": {}}', "carry_thought Field required"),
        (b'{"codec": 3, "carry_thought": false}', "codec Input should be"),
        (b'{"codec": {}, "carry_thought": false, "action_decoding": "x"}', "action_decoding Input should be"),
    ],
)
def test_settings_of_a_policy_that_are_none_are_named(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"rlvla_policy\.json: not a policy's settings: .*{message}"):
        parse_settings(content, "rlvla_policy.json")


def test_a_damaged_policy_names_its_file(tiny_policy: Path, tmp_path: Path) -> None:
    (tmp_path / "rlvla_policy.json").write_text("{")
    with pytest.raises(ValueError, match=r"rlvla_policy\.json: not a policy's settings"):
        PolicyProcessor.load(tmp_path)
    assert PolicyProcessor.load(tiny_policy).codec.num_bins == 16


CODEC = {"low": [0.0], "high": [1.0], "num_bins": 4, "chunk_length": 1, "gripper_dim": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": ["x"]}, "low"),
        ({"low": [None]}, "low"),
        ({"low": 3}, "low"),
        ({"low": [NAN]}, "ranges from nan to 1.0"),
        ({"high": [1e300]}, "finite float32"),
        ({"num_bins": "many"}, "num_bins"),
        ({"num_bins": 10**12}, "num_bins is 1000000000000"),
        ({"chunk_length": 10**12}, "chunk_length 1000000000000"),
        ({"gripper_dim": 7}, "gripper_dim is 7"),
    ],
)
def test_a_codec_that_is_none_names_the_field(change: dict[str, Any], message: str) -> None:
    assert QuantileCodec.from_dict(CODEC).num_bins == 4
    with pytest.raises(ValueError, match=message):
        QuantileCodec.from_dict(CODEC | change)


@pytest.mark.parametrize(
    "content",
    [
        b"{}", b"[]", b"{", b"\xff", b'{"weight_map": []}', b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": "../../secret.safetensors"}}', b'{"weight_map": {"a": "/etc/x.safetensors"}}',
        b'{"weight_map": {"a": "x.bin"}}', b'{"weight_map": {"a": "x\\u0000.safetensors"}}',
    ],
)  # fmt: skip
def test_an_index_of_weights_leads_nowhere_else(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^index\.json (names|is no index of weights)"):
        shard_names(content, "index.json")


def test_weights_that_are_cut_off_are_named(tmp_path: Path) -> None:
    from rlvla.policies.models.openvla.checkpoint import _published

    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cut off, or not safetensors"):
        _published(tmp_path)


@pytest.mark.parametrize(("dtype", "num_bytes"), [("F4", 3), ("U8", 6), ("I64", 48), ("F8_E4M3", 6), ("C64", 48)])
def test_weights_that_are_no_floats_are_named(tmp_path: Path, dtype: str, num_bytes: int) -> None:
    """Integers would be taken for weights, and half of a byte cannot be read into an odd shape."""
    from rlvla.policies.models.openvla.checkpoint import read_weights

    header = json.dumps({"a": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, num_bytes]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(num_bytes)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: a is {dtype}; weights are F64, F32, F16, BF16"):
        read_weights(tmp_path, {"a": [2, 3]})


OPENVLA = {"model_type": "openvla", "vision_backbone_id": "siglip-vit-so400m"}
TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 2, "num_attention_heads": 2, "num_registers": 0}
TOWER |= {"has_class_token": False, "has_layer_scale": False, "has_pooling_head": True}
TOWER |= {"patch_size": 14, "image_size": 28}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "describes no model"),
        ({"model_type": []}, "describes no model"),
        (OPENVLA | {"dtype": "no_such"}, "describes no model"),
        (OPENVLA | {"n_action_bins": "many"}, "many action tokens"),
        (OPENVLA | {"n_action_bins": -1}, "-1 action tokens"),
        (OPENVLA | {"n_action_bins": 256.0}, r"256\.0 action tokens"),
        (
            OPENVLA | {"n_action_bins": 10**6, "text_config": {"vocab_size": 10**7}},
            r"1000000 action tokens \(2 to 65536\)",
        ),
        (OPENVLA | {"image_token_index": -1}, r"image_token_index \(-1\)"),
        (OPENVLA | {"text_config": {"vocab_size": None}}, "vocab_size"),
        (OPENVLA | {"text_config": {"rope_scaling": 3}}, "describes no model"),
        (OPENVLA | {"vision_towers": [3]}, "describes no model"),
        (OPENVLA | {"vision_towers": [TOWER | {"patch_size": 0}]}, "patch_size"),
        (OPENVLA | {"vision_towers": [TOWER | {"patch_size": 29}]}, r"image_size 28 \(at least patch_size, 29\)"),
        (OPENVLA | {"vision_towers": [TOWER | {"num_layers": 10**9}]}, "num_layers"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    from rlvla.policies.models.auto import load_config

    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [b"3", b"{", b"\xff", b"[" * 100_000, b'["push"]'])
def test_statistics_that_are_no_table_of_data_sets_are_refused(tmp_path: Path, content: bytes) -> None:
    from rlvla.policies.models.openvla.checkpoint import read_norm_stats
    from rlvla.policies.models.openvla.config import OpenVLAConfig

    (tmp_path / "dataset_statistics.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="the statistics are no table of data sets"):
        read_norm_stats(tmp_path, OpenVLAConfig())


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        (3, "_Statistics"),
        ({"action": 3}, "action"),
        ({"action": {"q01": 3, "q99": 3}}, "tuple"),
        ({"action": {"q01": [None], "q99": [1]}}, "number"),
        ({"action": {"q01": [-(10**400)], "q99": [1]}}, "ranges from|number"),
        ({"action": {"q01": [0], "q99": [1], "mask": [[]]}}, "bool"),
    ],
)
def test_statistics_of_a_wrong_type_are_refused(stats: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BinCodec.from_norm_stats({"push": stats}, chunk_length=1)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"{", b'{"decision": [], "attempt": 0, "reply": {"annotation": null}}'])
def test_an_answer_of_another_kind_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "0.log").write_bytes(checked(line) + b"\n")
    with pytest.raises(ValueError, match=r"0\.log: an answer that another version wrote, or a forged one"):
        AnswerLog(tmp_path / "0.log")


def test_the_name_of_a_call_can_be_read_back_by_a_tokenizer(tiny_policy: Path) -> None:
    """Half a surrogate pair in the refusal would end the run: no tokenizer encodes it."""
    observation: Any = None
    result, box = call_tool({}, observation, '{"name": "\\ud800", "arguments": {}}')
    assert (result, box) == ("error: the name of the call cannot be printed", None)
    assert PolicyProcessor.load(tiny_policy).result_ids(image=False, text=str(result))
