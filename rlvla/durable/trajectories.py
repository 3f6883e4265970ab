"""Trajectories in a file, exactly: a JSON object a line, arrays as base64 of their bytes, images as PNG; no pickle."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rlvla import pictures
from rlvla.durable.files import appear_whole
from rlvla.types import EndReason, Segment, SegmentKind, TaskSpec, Trajectory, Turn

_WRONG = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""What a line that is no trajectory may raise."""


def save_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Write all trajectories, one a line; the file appears whole or not at all.

    Args:
        path: a `.jsonl` file; replaced if it exists. Its folder is made.
        trajectories: any number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with appear_whole(path) as file:
        for trajectory in trajectories:
            file.write((json.dumps(_write_trajectory(trajectory)) + "\n").encode())


def load_trajectories(path: Path) -> tuple[Trajectory, ...]:
    """Read what `save_trajectories` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no trajectory; the message names the file and the line.
    """
    trajectories = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                trajectories.append(_read_trajectory(json.loads(line)))
            except KeyError as error:
                raise ValueError(f"{path}, line {number}: a trajectory without {error}") from error
            except _WRONG as error:
                raise ValueError(f"{path}, line {number}: not a trajectory: {error}") from error
    return tuple(trajectories)


def _write_trajectory(trajectory: Trajectory) -> dict[str, Any]:
    task = trajectory.task
    return {
        "task": {
            "suite": task.suite,
            "task_id": int(task.task_id),
            "init_state_id": int(task.init_state_id),
            "seed": int(task.seed),
            "instruction": task.instruction,
        },
        "end": trajectory.end.value,
        "num_env_steps": int(trajectory.num_env_steps),
        "reward": _number(trajectory.reward),
        "reward_terms": {name: float(value) for name, value in trajectory.reward_terms.items()},
        "signal": _number(trajectory.signal),
        "advantage": _number(trajectory.advantage),
        "error": trajectory.error,
        "num_crashes": int(trajectory.num_crashes),
        "num_replays": int(trajectory.num_replays),
        "turns": [_write_turn(turn) for turn in trajectory.turns],
    }


def _read_trajectory(data: dict[str, Any]) -> Trajectory:
    return Trajectory(
        task=TaskSpec(**data["task"]),
        turns=tuple(_read_turn(turn) for turn in data["turns"]),
        end=EndReason(data["end"]),
        num_env_steps=data["num_env_steps"],
        reward=data["reward"],
        reward_terms=data["reward_terms"],
        signal=data.get("signal"),  # earlier versions knew none
        advantage=data["advantage"],
        error=data["error"],
        num_crashes=data["num_crashes"],
        num_replays=data["num_replays"],
    )


def _write_turn(turn: Turn) -> dict[str, Any]:
    return {
        "segments": [_write_segment(segment) for segment in turn.segments],
        "actions": _write_array(turn.actions),
        "policy_version": int(turn.policy_version),
        "latency_s": float(turn.latency_s),
        "token_ids": _write_array(turn.token_ids),
        "sampler_logprobs": _write_array(turn.sampler_logprobs),
        "images": [base64.b64encode(pictures.to_png(image)).decode() for image in turn.images],
    }


def _read_turn(data: dict[str, Any]) -> Turn:
    return Turn(
        token_ids=_read_array(data["token_ids"]),
        sampler_logprobs=_read_array(data["sampler_logprobs"]),
        segments=tuple(_read_segment(segment) for segment in data["segments"]),
        images=tuple(pictures.decode(base64.b64decode(image, validate=True)) for image in data["images"]),
        actions=_read_array(data["actions"]),
        policy_version=data["policy_version"],
        latency_s=data["latency_s"],
    )


def _write_segment(segment: Segment) -> dict[str, Any]:
    """Without the fields that say nothing, since most segments leave them empty."""
    data = {
        "kind": segment.kind.value,
        "start": int(segment.start),
        "end": int(segment.end),
        "text": segment.text,
        "box": [int(v) for v in segment.box] if segment.box else None,
        "error": segment.error,
        "is_reused": segment.is_reused or None,
        "unexecuted": [int(v) for v in segment.unexecuted] if segment.unexecuted else None,
    }
    return {name: value for name, value in data.items() if value not in ("", None)}


def _read_segment(data: dict[str, Any]) -> Segment:
    spans = {name: tuple(data[name]) for name in ("box", "unexecuted") if name in data}
    return Segment(**{**data, "kind": SegmentKind(data["kind"]), **spans})


def _write_array(array: np.ndarray) -> dict[str, Any]:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"dtype": little.dtype.str, "shape": list(array.shape), "data": data}


def _read_array(data: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(data["dtype"])
    if dtype.kind not in "iuf":
        raise ValueError(f"an array of dtype {data['dtype']}")
    flat = np.frombuffer(base64.b64decode(data["data"], validate=True), dtype)
    return flat.reshape(data["shape"]).astype(dtype.newbyteorder("="))


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
