"""The contact sheet: which decisions it draws, what it shows of them, and that no words get out of their place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlvla.annotation.contact_sheet import FILE, draw, write_contact_sheet
from rlvla.data import dataset, tables
from tests.pages import EVIL, Page, assert_inert
from tests.unit.annotated import GREY, row, write_rows


def source(folder: Path, num_samples: int = 8, seed: int = 0) -> str:
    write_contact_sheet(folder, num_samples, seed)
    return (folder / FILE).read_text()


@pytest.mark.parametrize(
    ("num_keys", "num_others", "num_drawn"), [(9, 30, (4, 4)), (2, 30, (2, 6)), (30, 3, (5, 3)), (3, 2, (3, 2))]
)
def test_half_of_the_drawn_decisions_are_key_frames_if_there_are_so_many(
    num_keys: int, num_others: int, num_drawn: tuple[int, int]
) -> None:
    is_key = np.random.default_rng(0).permutation(np.arange(num_keys + num_others) < num_keys)
    drawn = draw(is_key, 8, 0)
    assert drawn == sorted(set(drawn)) == draw(is_key, 8, 0)
    assert (is_key[drawn].sum(), (~is_key[drawn]).sum()) == num_drawn


def test_the_drawn_rows_are_shown_however_they_are_spread_over_files(tmp_path: Path) -> None:
    is_key = np.arange(30) % 3 == 0
    for rows_per_file in (7, 40):
        rows = [row("go", is_key=bool(is_key[i]), episode=i // 5, decision=i) for i in range(30)]
        html = source(write_rows(tmp_path / str(rows_per_file), rows, rows_per_file=rows_per_file), 8, seed=1)
        assert re.findall(r"decision (\d+)</span>", html) == [str(i) for i in draw(is_key, 8, 1)]
        page = Page(html)
        assert len(page.all("span", "badge good")) == 4
        assert "8 of 30 decisions" in page.text


def test_every_decision_is_drawn_alike() -> None:
    is_key = np.arange(12) < 6
    drawn = np.bincount([number for seed in range(200) for number in draw(is_key, 4, seed)], minlength=12)
    np.testing.assert_allclose(drawn / 200, 1 / 3, atol=0.13)  # four standard deviations; so the seed matters


def test_looks_and_thoughts_are_shown_in_order_on_the_camera_that_they_name(tmp_path: Path) -> None:
    picture = row(
        *("first", "second", "third"),
        looks=((1, (0, 0, 500, 500)), (0, (100, 200, 300, 600))),
        is_key=True,
        decision=7,
        images=(GREY, np.zeros((8, 16, 3), np.uint8)),
        progress=0.256,
        subtask="grasp it",
        subject="red block",
        gripper="open",
        next_gripper="close",
        by={"attempts": 3, "rejected": ("box", "length")},
    )
    html = source(write_rows(tmp_path / "demos", [picture], ["pick <it>"]))
    figures, text = re.findall(r"<figure.*?</figure>", html, re.DOTALL), Page(html).text
    assert [re.findall(r">(\d)</text>", figure) for figure in figures] == [["2"], ["1"], [], []]  # boxes on the views
    shown = [
        *("episode 0 · decision 7", "pick <it>", "key frame", "openai", "a-model", "3 attempts"),
        *("failed box", "failed length"),
        *("sub-task grasp it", "subject red block", "gripper open", "next close", "progress 26 %"),
    ]
    assert [words for words in shown if words not in text] == []
    order = ["camera 0", "camera 1", "first", "look 1: camera 1, 0 0 500 500", "second", "look 2: camera 0, 100 200"]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)


def test_nothing_on_the_page_runs_or_loads(tmp_path: Path) -> None:
    told: dict[str, Any] = dict.fromkeys(("subtask", "subject", "next_gripper"), EVIL)
    told["by"] = {"annotator": EVIL, "model": EVIL, "rejected": (EVIL,)}
    folder = write_rows(tmp_path / "demos", [row(EVIL, EVIL, boxes=[(0, 0, 9, 9)], **told)], [EVIL])
    assert_inert(source(folder), tmp_path, 9)


def test_only_pictures_near_what_is_drawn_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS_PER_GROUP", 10)
    folder = write_rows(tmp_path / "demos", [row("go", episode=i // 40) for i in range(200)], rows_per_file=100)
    read, columns = tables.pq.ParquetFile, list[object]()
    monkeypatch.setattr(read, "read", lambda self, names, of=read.read: columns.append(names) or of(self, names))
    groups, of_group = list[int](), read.read_row_group
    monkeypatch.setattr(read, "read_row_group", lambda self, i: groups.append(i) or of_group(self, i))
    assert source(folder, 2).count("<article") == 2
    assert columns == [["annotation.is_key_frame"]] * 2
    assert 0 < len(groups) <= 2  # of twenty
