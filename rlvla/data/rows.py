"""Decisions as rows of a data set, there and back: columns, their types, and what LeRobot is told of them.

An episode is a `pa.Table` whose schema carries LeRobot's `features` as metadata. Column `task` is the instruction;
what depends on the place in a set (`frame_index`, `task_index` ...) is added by `rlvla.data.dataset`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa

from rlvla import pictures
from rlvla.data.types import Demonstration, Provenance
from rlvla.durable.records import WRONG, from_json
from rlvla.types import Annotation

PLACE = {
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}
"""Columns that depend on the place in a set."""
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""A column of pictures."""
_STRINGS = pa.list_(pa.string())
_TYPES = {str: pa.string(), int: pa.int64(), float | None: pa.float32(), tuple[str, ...]: _STRINGS}
"""Of the fields of an annotation and a provenance."""
COLUMNS = {
    "observation.state": pa.list_(pa.float32()),
    "action": pa.list_(pa.list_(pa.float32())),
    "annotation.texts": _STRINGS,
    "annotation.crops": pa.list_(IMAGE),
    "annotation.boxes": pa.list_(pa.list_(pa.int64())),
    "annotation.box_images": pa.list_(pa.int64()),
    **{f"annotation.{name}": _TYPES[hint] for name, hint in get_type_hints(Annotation).items() if name != "looks"},
    "annotation.key_step": pa.int64(),
    "annotation.is_key_frame": pa.bool_(),
    "annotation.decision_index": pa.int64(),
    **{f"provenance.{name}": _TYPES[hint] for name, hint in get_type_hints(Provenance).items()},
    "task": pa.string(),
}
"""Of all columns but pictures."""
_SCALARS = {pa.string(): "string", pa.bool_(): "bool", pa.int64(): "int64", pa.float32(): "float32"}
"""Types that are a LeRobot dtype."""


class DatasetError(ValueError):
    """A data set that cannot be read or written; the message names the file or episode and what is wrong with it."""


def encode(episode: Sequence[Demonstration], name: str) -> pa.Table:
    """An episode as rows, its pictures compressed.

    Args:
        episode: decisions, at least one; annotated all of them or none.
        name: of the episode, for errors.

    Raises:
        DatasetError: there is no decision, or two of them differ in their columns or shapes.
    """
    if not episode:
        raise DatasetError(f"{name}: there is no decision")
    rows = [_row(decision) for decision in episode]
    schemas = [
        _schema(tuple(row), tuple(i.shape for i in decision.images), decision.proprio.shape, decision.actions.shape)
        for decision, row in zip(episode, rows, strict=True)
    ]
    for number, schema in enumerate(schemas):
        require_same(schema, schemas[0], f"{name}, decision {number}")
    return pa.Table.from_pylist(rows, schema=schemas[0])


def decode(row: Mapping[str, Any], instruction: str, where: str) -> Demonstration:
    """The decision that a row of a data set is; columns that older sets lack come back as their defaults.

    Args:
        row: by column.
        instruction: of its task.
        where: file, episode and frame, for errors.

    Raises:
        DatasetError: a picture is missing or damaged, a column holds another kind of thing; it begins with `where`.
    """
    names = sorted(key for key in row if key.startswith("observation.images."))
    looks = [*zip(row.get("annotation.box_images") or (), row.get("annotation.boxes") or (), strict=False)]
    return Demonstration(
        instruction=instruction,
        images=tuple(decode_image(row[name], f"{where}, {name}") for name in names),
        proprio=np.array(row["observation.state"], np.float32),
        texts=tuple(row["annotation.texts"]),
        crops=tuple(decode_image(crop, f"{where}, a crop") for crop in row["annotation.crops"]),
        actions=np.array(row["action"], np.float32),
        annotation=_record(Annotation, row, where, looks=looks) if "annotation.thoughts" in row else None,
        provenance=_record(Provenance, row, where) if "provenance.annotator" in row else None,
        is_key_frame=row.get("annotation.is_key_frame", False),
        key_step=row.get("annotation.key_step"),
        decision_index=row.get("annotation.decision_index", 0),
    )


def require_same(schema: pa.Schema, first: pa.Schema, name: str) -> None:
    """Raises DatasetError that begins with `name` where an episode's columns or shapes differ from the first's."""
    if schema.equals(first, check_metadata=True):
        return
    own, other = _shapes(schema), _shapes(first)
    key = next(key for key in {**other, **own} if own.get(key) != other.get(key))
    raise DatasetError(
        f"{name}: {key} is {own.get(key, 'missing')}, but {other.get(key, 'missing')} in what came first; "
        "a data set is annotated throughout or not at all, and its pictures and actions have one shape"
    )


def features(schema: pa.Schema) -> dict[str, Any]:
    """What LeRobot is told of the columns, those of `PLACE` included."""
    return json.loads((schema.metadata or {})[b"features"]) | {name: _scalar(kind) for name, kind in PLACE.items()}


def _row(decision: Demonstration) -> dict[str, Any]:
    row = {
        **{f"observation.images.{i}": _encode_image(image) for i, image in enumerate(decision.images)},
        "observation.state": decision.proprio.tolist(),
        "action": decision.actions.tolist(),
        "annotation.texts": decision.texts,
        "annotation.crops": [_encode_image(crop) for crop in decision.crops],
        "annotation.key_step": decision.key_step,  # of sets that nobody has annotated, too: a chain ends there
    }
    if (annotation := decision.annotation) is not None:
        row |= {
            "annotation.thoughts": annotation.thoughts,
            "annotation.boxes": [box for _, box in annotation.looks],
            "annotation.box_images": [image for image, _ in annotation.looks],
            **_columns(annotation, leave_out=("thoughts", "looks")),
            "annotation.is_key_frame": decision.is_key_frame,
            "annotation.decision_index": decision.decision_index,
        }
    if decision.provenance is not None:
        row |= _columns(decision.provenance)
    return row | {"task": decision.instruction}


def _columns(record: Annotation | Provenance, leave_out: Collection[str] = ()) -> dict[str, Any]:
    names = (f.name for f in fields(record) if f.name not in leave_out)
    return {f"{type(record).__name__.lower()}.{name}": getattr(record, name) for name in names}


@lru_cache(maxsize=8)  # few differ in a data set, mostly none, and it takes a share of what a small picture takes
def _schema(
    names: tuple[str, ...], images: tuple[tuple[int, ...], ...], proprio: tuple[int, ...], actions: tuple[int, ...]
) -> pa.Schema:
    """Of columns by name, and of the shapes of what they hold."""
    told: dict[str, Any] = {
        f"observation.images.{i}": {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
        for i, shape in enumerate(images)
    }
    told["observation.state"] = {"dtype": "float32", "shape": proprio, "names": None}
    told["action"] = {"dtype": "float32", "shape": actions, "names": ["chunk", "action"]}
    columns = {name: COLUMNS.get(name, IMAGE) for name in names}
    told |= {name: _scalar(kind) for name, kind in columns.items() if kind in _SCALARS and name != "task"}
    return pa.schema(list(columns.items()), metadata={"features": json.dumps(told)})


def _scalar(kind: pa.DataType) -> dict[str, Any]:
    return {"dtype": _SCALARS[kind], "shape": [1], "names": None}


def _shapes(schema: pa.Schema) -> dict[str, str]:
    """Columns with their types and shapes, in words."""
    told = features(schema)
    return {f.name: f"{f.type}{told[f.name]['shape'] if f.name in told else ''}" for f in schema}


def _record(kind: Any, row: Mapping[str, Any], where: str, **values: Any) -> Any:
    """An annotation or a provenance, each field from its column or from `values`."""
    name = kind.__name__.lower()
    told = {f.name: row[column] for f in fields(kind) if (column := f"{name}.{f.name}") in row}
    try:
        return from_json(kind, told | values)
    except WRONG as error:
        raise DatasetError(f"{where}: no {name} ({error})") from error


def _encode_image(image: np.ndarray) -> dict[str, Any]:
    return {"bytes": pictures.to_png(image), "path": None}


def decode_image(image: Any, where: str) -> np.ndarray:
    """A picture column's value as [H, W, 3] uint8; see `decode_picture`."""
    if not isinstance(image, Mapping) or not isinstance(image.get("bytes"), bytes):
        raise DatasetError(f"{where}: a frame has no picture")
    return decode_picture(image["bytes"], where)


def decode_picture(data: bytes, where: str) -> np.ndarray:
    """The picture in a file's bytes, [H, W, 3] uint8; raises DatasetError that begins with `where`."""
    try:
        return pictures.decode(data)
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error
