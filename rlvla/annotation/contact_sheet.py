"""The contact sheet: annotated decisions drawn at random, on one page that runs nothing and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.data.dataset import data_files, read_tasks
from rlvla.data.rows import decode_image
from rlvla.data.tables import picked_rows, read_table
from rlvla.report.decision import Note, Picture, Piece, look_colour, views
from rlvla.report.templating import render

FILE = "contact_sheet.html"
_KEY = "annotation.is_key_frame"


def write_contact_sheet(folder: Path, num_samples: int, seed: int) -> None:
    """Write `contact_sheet.html` of an annotated data set, see `draw`."""
    is_key = np.concatenate([read_table(file, [_KEY])[_KEY].to_numpy() for file in data_files(folder)])
    tasks, rows = read_tasks(folder), picked_rows(data_files(folder), draw(is_key, num_samples, seed))
    samples = [(row, tasks[row["task_index"]], _pieces(row)) for row in rows]
    page = render("contact_sheet.html", title="Contact sheet", samples=samples, num_rows=len(is_key), seed=seed)
    (folder / FILE).write_text(page, encoding="utf-8")


def draw(is_key: np.ndarray, num_samples: int, seed: int) -> list[int]:
    """Random rows in order, half of them key frames if there are so many.

    Args:
        is_key: [rows] bool.
        num_samples: how many rows, or all of them.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    keys, others = (rng.permutation(np.flatnonzero(is_key == of)) for of in (True, False))
    keys = keys[: max((num_samples + 1) // 2, num_samples - len(others))]
    return sorted([*keys.tolist(), *others[: num_samples - len(keys)].tolist()])


def _pieces(row: Mapping[str, Any]) -> list[Piece]:
    """What was seen at a decision, then thoughts and looks in order."""
    where = f"episode {row['episode_index']}, decision {row['annotation.decision_index']}"
    cameras = [decode_image(row[name], where) for name in sorted(row) if name.startswith("observation.images.")]
    looks = list(zip(row["annotation.box_images"], row["annotation.boxes"], row["annotation.crops"], strict=True))
    pieces: list[Piece] = [*views(cameras, [(camera, tuple(box)) for camera, box, _ in looks])]
    for i, thought in enumerate(row["annotation.thoughts"]):
        pieces.append(Note(who="thought", words=thought))
        if i < len(looks):
            camera, box, crop = looks[i]
            place = f"camera {camera}, " if len(cameras) > 1 else ""
            caption = f"look {i + 1}: {place}{' '.join(map(str, box))}"
            pieces.append(Picture(image=decode_image(crop, where), caption=caption, colour=look_colour(i)))
    return pieces
