"""A disk that is full, small or read-only: a real one, a tmpfs of two megabytes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.run import ROOT, environment
from tests.full_disk import can_mount, command

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(not can_mount(), reason="this machine lets no process mount a tmpfs of its own"),
]


def run(case: str, folder: Path, checkpoint: Path) -> tuple[str, str]:
    """(error, files that are left)."""
    done = subprocess.run(
        command(case, folder, checkpoint), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert os.listdir(folder) == []  # the disk is gone with the process
    message, files = done.stdout.strip().splitlines()[-1].split(" | ")
    return message, files


def test_a_checkpoint_that_does_not_fit_leaves_the_ones_before_it(checkpoint: Path, tmp_path: Path) -> None:
    message, files = run("state", tmp_path, checkpoint)
    assert f"{tmp_path}/run/state/step-00000" in message
    assert "could not be written" in message
    assert "bytes were free" in message
    assert "'run/state/step-000001/learner/rank_0.pt'" in files
    assert "'run/state/step-000001/manifest.json'" in files
    assert "incomplete" not in files


def test_a_line_that_does_not_fit_names_the_file(checkpoint: Path, tmp_path: Path) -> None:
    message, files = run("line", tmp_path, checkpoint)
    assert f"output: cannot write to {tmp_path}/run/metrics.jsonl (No space left on device): make room" in message
    assert "'run/metrics.jsonl'" in files


def test_a_policy_that_does_not_fit_leaves_the_one_before_it(checkpoint: Path, tmp_path: Path) -> None:
    message, files = run("policy", tmp_path, checkpoint)
    assert f"{tmp_path}/run/checkpoint could not be written" in message
    assert "bytes were free" in message
    assert "'run/checkpoint/model.safetensors'" in files
    assert "'run/checkpoint/manifest.json'" in files
    assert "incomplete" not in files
    assert "replaced" not in files


def test_a_full_disk_is_told_before_anything_starts(checkpoint: Path, tmp_path: Path) -> None:
    message, files = run("full", tmp_path, checkpoint)
    assert f"output: cannot write to {tmp_path}/run (No space left on device)" in message
    assert files == "['filler']"


def test_a_read_only_folder_is_told_before_anything_starts(checkpoint: Path, tmp_path: Path) -> None:
    message, files = run("read-only", tmp_path, checkpoint)
    assert f"output: cannot write to {tmp_path}/run (Read-only file system)" in message
    assert files == "[]"


def test_a_disk_that_will_not_do_is_told_before_anything_starts(checkpoint: Path, tmp_path: Path) -> None:
    message, files = run("room", tmp_path, checkpoint)
    # A policy of half a megabyte, and four states, the one that is being written among them, of three times as much.
    assert f"output: {tmp_path}/run is on a disk with 2 MB free, and the run writes about 7 MB there: make" in message
    assert files == "['filler']"
