"""The table of what is fuzzed: each target turns bytes into the input of one reader, and asserts what that promises.

A reader of what a model or a stranger wrote either returns something sound or raises its documented error. What else
it raises is a finding, and so is an AssertionError in a target. The targets are in `fuzz_texts.py`, `fuzz_files.py` and
`fuzz_checkpoints.py`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import fuzz_checkpoints
import fuzz_files
import fuzz_texts
from fuzz_files import FOLDER
from rlvla.policies.markup import MARKS

__all__ = ["FOLDER", "TARGETS", "Target"]


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


def _answers() -> tuple[bytes, ...]:
    plain = {"subtask": "reach", "subject": "cup", "gripper": "open", "next_gripper": "stay", "progress": 10}
    key = plain | {"observation": "a cup", "image": 0, "bbox": [0, 1, 500, 1000], "conclusion": "go"}
    return json.dumps(key).encode(), json.dumps(plain | {"thought": "go on"}).encode()


_REPLY = {"annotation": None, "error": "", "prompt_tokens": 0, "completion_tokens": 0}
_MARKUP = (
    '<think>a cup</think><tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [1, 2, 300, 400]}}</tool>',
    "<think>go</think><act>0 1 2</act>",
)
_SETTINGS = {"codec": {"low": [-1.0], "high": [1.0], "num_bins": 16, "chunk_length": 2, "gripper_dim": None}}
_JSON = ("{", "}", "[", "]", '"', ":", ",", "null", "true", "NaN", "Infinity", "1e999", "\\ud800", "-1", "9" * 400)

_DTYPES = (
    *(("F32", 32), ("BF16", 16), ("F64", 64), ("I64", 64), ("U8", 8), ("BOOL", 8), ("C64", 64)),
    *(("F8_E4M3", 8), ("F8_E8M0", 8), ("F4", 4)),
)
"""Names in safetensors files, and bits."""

TARGETS = {
    "markup": Target(
        run=fuzz_texts.markup, share=200, max_bytes=1024, seeds=tuple(text.encode() for text in _MARKUP), tokens=MARKS
    ),
    "calls": Target(
        run=fuzz_texts.calls,
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
        run=fuzz_texts.actions,
        share=400,
        max_bytes=512,
        seeds=(b"\x10\x02\x09" + struct.pack("<9d", -1, -2, 0, 1, 2, 0, 0.5, math.nan, math.inf),),
    ),
    "answer": Target(
        run=fuzz_texts.answer, share=600, max_bytes=1024, seeds=_answers(), tokens=(*_JSON, '"bbox"', '"thought"')
    ),
    "config": Target(
        run=fuzz_texts.config,
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
        run=fuzz_checkpoints.checkpoint,
        share=400,
        max_bytes=1024,
        seeds=(
            json.dumps(_SETTINGS | {"carry_thought": False, "trained_suites": ["s"]}).encode(),
            b'{"weight_map": {"a": "model-1.safetensors", "b": "../x.safetensors"}}',
            b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "target_modules": "a.*", '
            b'"trainable_token_indices": {"model.embed_tokens": [5, 6]}}',
        ),
        tokens=(*_JSON, "../", '"codec"', "num_bins", "parallel"),
    ),
    "openvla": Target(
        run=fuzz_checkpoints.openvla,
        share=20,
        seeds=fuzz_checkpoints.openvla_seeds(),
        tokens=(
            *(*_JSON, "\0", '"norm_stats"', '"action"', '"mask"', '"min"', '"n_action_bins"', '"image_token_index"'),
            *('"action_token_end"', '"use_fused_vision_backbone"', '"rope_scaling"', '"dtype"', "1000000000000"),
        ),
    ),
    "safetensors": Target(
        run=fuzz_checkpoints.safetensors,
        share=30,
        max_bytes=512,
        seeds=tuple(fuzz_checkpoints.header(*dtype) for dtype in _DTYPES),
        tokens=(*_JSON, "module.", ".ls2.gamma", "[0]", "[]", "1000000000000", *(f'"{name}"' for name, _ in _DTYPES)),
    ),
    "answer_log": Target(
        run=fuzz_files.answer_log,
        share=3,
        seeds=(json.dumps({"decision": 0, "attempt": 1, "is_judge": False, "reply": _REPLY}).encode(),),
        tokens=(*_JSON, '"decision"', '"attempt"', '"is_judge"', '"reply"'),
    ),
    "trajectories": Target(
        run=fuzz_files.trajectories,
        share=150,
        max_bytes=2048,
        seeds=(fuzz_files.trajectory_seed(),),
        tokens=(*_JSON, '"turns"', '"end"', "\n"),
    ),
    "picture": Target(
        run=fuzz_files.picture,
        share=500,
        seeds=(fuzz_files.png_seed(),),
        tokens=("IHDR", "IDAT", "PLTE", "tRNS", "IEND"),
    ),
    "video": Target(
        run=fuzz_files.video,
        share=5,
        seeds=tuple(map(fuzz_files.video_seed, ("mpeg4", "h264"))),
        tokens=("ftyp", "moov", "mdat", "stsz", "stco", "avcC", "esds", "#EXTM3U", "ffconcat version 1.0"),
    ),
    "lerobot": Target(
        run=fuzz_files.lerobot,
        share=20,
        seeds=(fuzz_files.lerobot_seed(),),
        tokens=(*_JSON, "v2.0", "v3.0", "{0}", "../", "{episode_index:99d}"),
    ),
    "parquet": Target(run=fuzz_files.parquet, share=2, seeds=(fuzz_files.parquet_seed(),), max_bytes=16384),
    "hdf5": Target(run=fuzz_files.hdf5, share=1, seeds=(b'{"env_kwargs": {"control_freq": 20}}',), max_bytes=64),
}
"""By name, in the order in which they are run."""
