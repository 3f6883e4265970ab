"""The contact sheet: annotated decisions drawn at random, on one page that runs nothing and loads nothing."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.annotation.rows import num_rows, picked, rows
from rlvla.data.dataset import data_files, read_tasks
from rlvla.data.rows import decode_image
from rlvla.report.html_page import note, page, tag, text
from rlvla.report.html_picture import box_colour, picture

FILE = "contact_sheet.html"
_KEY = "annotation.is_key_frame"
_STYLE = """
body { max-width: 80rem; } .sample h3 { margin: 0 0 .2rem; overflow-wrap: anywhere; } .sample .picture { width: 14rem; }
.sample .badge { display: inline-block; margin-right: .3rem; max-width: 100%; overflow: hidden; text-overflow: ellipsis;
  vertical-align: bottom; }
.sample .note { max-width: 15rem; max-height: 20rem; overflow-y: auto; }
.state { margin: .4rem 0; overflow-wrap: anywhere; } .state span { margin-right: 1.1rem; }
.state i { font-style: normal; color: var(--dim); font-size: .85rem; }
@media (max-width: 40rem) { .sample .picture { flex: 1 1 8rem; max-width: 20rem; } .state span { display: block; }
  .sample .note { max-width: none; width: 100%; } }
"""


def write_contact_sheet(folder: Path, num_samples: int, seed: int) -> None:
    """Write `contact_sheet.html`.

    Args:
        folder: an annotated data set.
        num_samples: decisions to show, or as many as there are; half of them key frames, if there are so many.
        seed: of the draw.
    """
    places = draw(folder, num_samples, seed)
    instructions, files = read_tasks(folder), data_files(folder)
    samples = (
        _sample(row, instructions[row["task_index"]])
        for file, group in itertools.groupby(places, key=lambda place: place[0])
        for row in picked(files[file], [number for _, number in group])
    )
    about = f"{len(places):,} of {num_rows(folder):,} decisions, drawn at random with seed {seed}, in the data's order."
    body = tag("p", about, class_="dim") + "".join(samples)
    (folder / FILE).write_text(page("Contact sheet", {"Decisions": body}, style=_STYLE), encoding="utf-8")


def draw(folder: Path, num_samples: int, seed: int) -> list[tuple[int, int]]:
    """(file, row in the file) of random decisions in order, half of them key frames if there are so many."""
    keys, others = (_draw(folder, num_samples, seed, is_key=is_key) for is_key in (True, False))
    num_keys = max((num_samples + 1) // 2, num_samples - len(others))
    keys = keys[:num_keys]
    return sorted(keys + others[: num_samples - len(keys)])


def _draw(folder: Path, num_samples: int, seed: int, *, is_key: bool) -> list[tuple[int, int]]:
    """The rows that draw the lowest lots: a fair sample in one pass, of which no more than the sample is kept."""
    rng = np.random.default_rng([seed, is_key])
    lots = (
        (rng.random(), file, number)
        for file, path in enumerate(data_files(folder))
        for number, row in enumerate(rows(path, [_KEY]))
        if row[_KEY] == is_key
    )
    return [(file, number) for _, file, number in heapq.nsmallest(num_samples, lots)]


def _sample(row: Mapping[str, Any], instruction: str) -> str:
    """One decision: what is said of the state, what was seen, then thoughts and looks in order."""
    looks = list(zip(row["annotation.box_images"], row["annotation.boxes"], row["annotation.crops"], strict=True))
    cameras = sorted(name for name in row if name.startswith("observation.images."))
    where = f"episode {row['episode_index']}, decision {row['annotation.decision_index']}"
    views = "".join(
        picture(
            decode_image(row[name], where),
            "policy view" if len(cameras) == 1 else f"camera {camera}",
            boxes=[(i, tuple(box)) for i, (of, box, _) in enumerate(looks) if of == camera],
        )
        for camera, name in enumerate(cameras)
    )
    steps = [note("thought", thought) for thought in row["annotation.thoughts"]]
    for i, (camera, box, crop) in enumerate(looks):
        of = f"camera {camera}, " if len(cameras) > 1 else ""
        steps[i] += picture(
            decode_image(crop, where), f"look {i + 1}: {of}{' '.join(map(str, box))}", colour=box_colour(i)
        )
    place = f"episode {row['episode_index']} · decision {row['annotation.decision_index']}"
    head = tag("h3", text(instruction)) + _badges(row) + tag("span", place, class_="dim")
    flow = tag("div", views + "".join(steps), class_="flow")
    return tag("article", head + _state(row) + flow, class_="episode sample") + "\n"


def _badges(row: Mapping[str, Any]) -> str:
    """Whether it is a key frame, who annotated it, and what had to be asked for again."""
    attempts = row["provenance.attempts"]
    badges = [("key frame", "good")] if row[_KEY] else []
    badges += [(row["provenance.annotator"], ""), (row["provenance.model"], "")]
    badges += [(f"{attempts} attempt{'s' if attempts > 1 else ''}", "")]
    badges += [(f"failed {check}", "bad") for check in row["provenance.rejected"]]
    return "".join(tag("span", text(words), class_=f"badge {kind}".strip()) for words, kind in badges if words)


def _state(row: Mapping[str, Any]) -> str:
    """Sub-task, subject, gripper and progress, as far as they are said."""
    progress = row["annotation.progress"]
    facts = {
        "sub-task": row["annotation.subtask"],
        "subject": row["annotation.subject"],
        "gripper": row["annotation.gripper"],
        "progress": "" if progress is None else f"{100 * progress:.0f} %",
    }
    said = "".join(tag("span", f"<i>{name}</i> {text(fact)}") for name, fact in facts.items() if fact)
    return tag("div", said, class_="state") if said else ""
