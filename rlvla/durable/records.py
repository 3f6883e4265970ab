"""Frozen dataclasses as JSON values and back, exactly: arrays as base64 of their bytes, pictures as PNG; no pickle.

A field at its default is left out. So a record written before a field was there reads as one that has its default.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from rlvla import pictures

WRONG = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""What `from_json` may raise."""


def to_json(value: Any) -> Any:
    """A dataclass, and what it may hold, as values that `json.dumps` takes."""
    if is_dataclass(value):
        held = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: to_json(v) for f, v in held if isinstance(v, np.ndarray) or not _is_default(f, v)}
    if isinstance(value, np.ndarray):
        return _write_array(value)
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _is_default(told: Field[Any], value: Any) -> bool:
    """Whether a field holds what it has where nothing is said; of a mapping: whether it is empty."""
    return not value if told.default_factory is dict else value == told.default


def from_json(kind: Any, data: Any) -> Any:
    """What `to_json` made of a value.

    Args:
        kind: its type: a dataclass, or what the fields of one are annotated with.
        data: parsed JSON.

    Raises:
        one of `WRONG`: it is no such value. Numbers and words are checked; a dataclass checks the rest itself.
    """
    arguments = get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        if unknown := data.keys() - hints.keys():
            raise ValueError(f"a {kind.__name__} knows no {min(unknown)}")
        return kind(**{name: from_json(hints[name], inner) for name, inner in data.items()})
    if kind is np.ndarray:
        return pictures.decode(base64.b64decode(data, validate=True)) if isinstance(data, str) else _read_array(data)
    if NoneType in arguments:
        return None if data is None else from_json(arguments[0], data)
    if get_origin(kind) is tuple:
        kinds = (arguments[0],) * len(data) if arguments[1:] == (...,) else arguments
        return tuple(from_json(each, inner) for each, inner in zip(kinds, data, strict=True))
    if get_origin(kind) is Sequence:
        return tuple(from_json(arguments[0], inner) for inner in data)
    if get_origin(kind) is Mapping:
        return {key: from_json(arguments[1], inner) for key, inner in data.items()}
    base = next(each for each in (str, bool, int, float) if issubclass(kind, each))
    if not isinstance(data, base | (int if base is float else base)):
        raise TypeError(f"{data!r} where a {base.__name__} is due")
    return kind(data)


_hints = cache(get_type_hints)


def _write_array(array: np.ndarray) -> str | dict[str, Any]:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3:
        return base64.b64encode(pictures.to_png(array)).decode()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "dtype": little.dtype.str,
        "shape": list(array.shape),
        "data": base64.b64encode(little.tobytes()).decode(),
    }


def _read_array(data: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(data["dtype"])
    if dtype.kind not in "iuf":
        raise ValueError(f"an array of dtype {data['dtype']}")
    flat = np.frombuffer(base64.b64decode(data["data"], validate=True), dtype)
    return flat.reshape(data["shape"]).astype(dtype.newbyteorder("="))
