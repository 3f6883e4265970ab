"""Checkpoint folders: sealed, damaged in every way, and written by a process that is killed at any change."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlvla.durable.checkpoints import (
    MANIFEST,
    appear_sealed,
    aside_of,
    damage,
    forget_old,
    newest_whole,
    require_seen,
    seen,
)
from tests.killed import killed_everywhere


def write(states: Path, step: int) -> Path:
    folder = states / f"step-{step:06d}"
    with appear_sealed(folder) as aside:
        (aside / "learner").mkdir()
        (aside / "learner/rank_0.pt").write_bytes(bytes(range(256)) * 40)
        (aside / "driver.json").write_text(f'{{"position": {step}}}')
    return folder


def test_a_sealed_folder_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = write(tmp_path / "state", 4)
    assert damage(folder) == ""
    assert {path.name for path in folder.iterdir()} == {"learner", "driver.json", MANIFEST}
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-000004"]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """From now on: what is written through to the disk, by its path, and which names appear, in order."""
    deeds: list[tuple[str, Path]] = []
    fsync = os.fsync

    def noting_sync(descriptor: int) -> None:
        fsync(descriptor)
        deeds.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def noting(rename: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        return lambda source, target: (rename(source, target), deeds.append(("appear", Path(target))))[0]

    monkeypatch.setattr(os, "fsync", noting_sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return deeds


def test_a_folder_appears_when_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure finds every byte behind a manifest, and a whole folder behind the name."""
    deeds = recorded(monkeypatch)
    folder = write(tmp_path / "state", 1)
    aside = aside_of(folder)
    manifest, name = (deeds.index(("appear", path)) for path in (aside / MANIFEST, folder))
    content = {("sync", aside / path) for path in ("learner/rank_0.pt", "driver.json", "learner", "")}
    assert content <= {*deeds[:manifest]}
    assert ("sync", aside) in deeds[manifest:name]  # the manifest's name
    (written,) = [path for deed, path in deeds[:manifest] if MANIFEST in path.name]  # aside, as its pid is in its name
    assert written.parent == aside
    assert {("sync", path) for path in (folder.parent, tmp_path)} <= {*deeds[name:]}


def test_a_folder_whose_writer_failed_does_not_appear(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="step-000001 could not be written"),
        appear_sealed(tmp_path / "state/step-000001") as aside,
    ):
        (aside / "big").write_bytes(bytes(1 // 0))
    assert list((tmp_path / "state").iterdir()) == []


def test_a_part_that_lies_on_another_disk_keeps_the_folder_from_appearing(tmp_path: Path) -> None:
    """Rank 1 wrote to the path of the same name on its own node."""
    theirs = tmp_path / "node_b/step-000010/learner"
    theirs.mkdir(parents=True)
    (theirs / "rank_1.pt").write_bytes(b"11")

    def write_state(theirs: Path) -> None:
        with appear_sealed(tmp_path / "state/step-000010") as aside:
            ours = aside / "learner"
            ours.mkdir()
            (ours / "rank_0.pt").write_bytes(b"0")
            require_seen(ours, {"learner rank 0 on a": seen(ours), "learner rank 1 on b": seen(theirs)})

    with pytest.raises(OSError, match=r"rank_1.pt of learner rank 1 on b \(2 bytes\) is not in .*nodes share"):
        write_state(theirs)
    assert newest_whole(tmp_path / "state") is None
    (theirs / "rank_1.pt").rename(theirs / "rank_0.pt")
    with pytest.raises(OSError, match=r"rank_0.pt of learner rank 1 on b \(2 bytes\) is not in"):
        write_state(theirs)  # a part of the same name is here, of another size


def test_a_writer_killed_anywhere_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    calm, states = content(write(tmp_path / "calm", 2)), tmp_path / "state"
    write(states, 1)
    num_torn = 0
    for _ in killed_everywhere(lambda: write(states, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an unfinished one is not even seen
            newest = newest_whole(states)
        assert newest == (1, states / "step-000001")
        num_torn += any(states.glob("incomplete-*"))
    assert num_torn > 5  # the kills hit the writing itself
    assert newest_whole(states) == (2, states / "step-000002")
    assert {path.name for path in states.iterdir()} == {"step-000001", "step-000002"}  # what was left is taken away
    assert content(states / "step-000002") == calm


def test_a_folder_that_is_replaced_is_at_no_moment_half_there(tmp_path: Path) -> None:
    path = tmp_path / "in/checkpoint"

    def replace(text: str) -> None:
        with appear_sealed(path) as aside:
            for name in "ab":
                (aside / name).write_text(text)

    replace("old")
    old, left = content(path), []
    for _ in killed_everywhere(lambda: replace("new")):
        left.append(content(path) if path.exists() else {})
        with pytest.raises(OSError, match="what was there before is untouched"), appear_sealed(path):
            raise ZeroDivisionError
        assert content(path) == (left[-1] or old)
        assert list(path.parent.iterdir()) == [path]
        replace("old")
    assert [state for state, _ in itertools.groupby(left)] == [old, {}, content(path)]
    assert left.count({}) == 1  # between the two renames


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << (position % 8)
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    manifest = folder / MANIFEST
    whole = manifest.read_bytes()
    for position in (i for i, byte in enumerate(whole) if not chr(byte).isspace()):
        flip(manifest, position)
        assert damage(folder), f"bit {position % 8} of byte {position} ({whole[position : position + 1]!r})"
        manifest.write_bytes(whole)
    assert damage(folder) == ""


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("learner/rank_0.pt", lambda path: flip(path, 0), "learner/rank_0.pt has another checksum"),
        ("learner/rank_0.pt", lambda path: flip(path, 10_239), "learner/rank_0.pt has another checksum"),
        ("learner/rank_0.pt", lambda path: os.truncate(path, 4096), "learner/rank_0.pt has another checksum"),
        ("learner/rank_0.pt", Path.unlink, "learner/rank_0.pt is missing"),
        (MANIFEST, lambda path: path.write_text("[]"), f"its {MANIFEST} cannot be read"),
        (MANIFEST, Path.unlink, f"it has no {MANIFEST}"),
    ],
)
def test_a_flipped_torn_or_missing_file_is_found(tmp_path: Path, file: str, change: Any, message: str) -> None:
    folder = write(tmp_path, 1)
    change(folder / file)
    assert damage(folder).startswith(message)


def test_the_newest_whole_one_is_taken_and_the_damaged_ones_are_named_and_left(tmp_path: Path) -> None:
    folders = [write(tmp_path, step) for step in (2, 999_998, 1_000_000)]
    assert newest_whole(tmp_path) == (1_000_000, folders[2])
    os.truncate(folders[2] / "learner/rank_0.pt", 100)
    with pytest.warns(UserWarning, match=r"step-1000000 is damaged \(learner/rank_0.pt has another checksum"):
        assert newest_whole(tmp_path) == (999_998, folders[1])
    flip(folders[0] / "driver.json", 3)
    flip(folders[1] / "driver.json", 3)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert newest_whole(tmp_path) is None
    assert len(said) == 4
    assert "holds no whole checkpoint: the run starts over" in str(said[-1].message)
    assert all(folder.is_dir() for folder in folders)
    assert newest_whole(tmp_path / "nowhere") is None


def test_old_checkpoints_go_and_the_newest_stay(tmp_path: Path) -> None:
    for step in (9, 10, 2, 100):
        write(tmp_path, step)
    forget_old(tmp_path, 2, written=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100"]
    forget_old(tmp_path, 3, written=100)
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_newer_ones_take_no_room_from_the_one_just_written(tmp_path: Path) -> None:
    """The run went on from 2, as 8 and 9 were damaged: what it writes next must not be what is removed."""
    for step in (1, 2):
        write(tmp_path, step)
    for step in (8, 9):
        flip(write(tmp_path, step) / "driver.json", 3)
    for step in (3, 4):
        write(tmp_path, step)
        forget_old(tmp_path, 2, written=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-00000{step}" for step in (3, 4, 8, 9)]
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest_whole(tmp_path) == (4, tmp_path / "step-000004")


def test_what_is_no_state_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    """A copy that somebody has put aside, and a file."""
    whole = [write(tmp_path, step) for step in (1, 2)]
    others = [shutil.copytree(whole[1], tmp_path / "step-000004.bak"), tmp_path / "step-000009"]
    others[1].touch()
    assert newest_whole(tmp_path) == (2, whole[1])
    forget_old(tmp_path, 1, written=2)
    assert sorted(tmp_path.iterdir()) == [whole[1], *others]


def test_a_state_that_cannot_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    read = hashlib.file_digest

    def fail(file: Any, name: Any) -> Any:
        if Path(file.name).is_relative_to(newer):
            raise OSError(errno.EIO, "Input/output error", file.name)
        return read(file, name)

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.warns(UserWarning, match=r"step-000002 is damaged \(it cannot be read: .*Input/output error"):
        assert newest_whole(tmp_path) == (1, older)
