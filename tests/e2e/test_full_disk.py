"""A disk that is full, small or read-only: real ones, each a tmpfs of two megabytes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.run import ROOT, environment
from tests.full_disk import can_mount, command

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not can_mount(), reason="this machine lets no process mount a tmpfs of its own"),
]


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the disks were mounted at."""
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def told(disks: Path, checkpoint: Path) -> dict[str, tuple[str, list[str]]]:
    """Of each case the error, and the files that are left."""
    done = subprocess.run(
        command(disks, checkpoint), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(disks.glob("*/*")) == []  # the disks are gone with the process
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {case: (error, files) for case, error, files in lines}


UNFIT = ("could not be written", "bytes were free")
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "state": (("/run/state/step-00000", *UNFIT), ("state/step-000001/learner/rank_0.pt", "step-000001/manifest.json")),
    "line": (
        ("cannot write to", "run/metrics.jsonl (No space left on device): make room"),
        ("metrics.jsonl",),
    ),
    "policy": (("/run/checkpoint could", *UNFIT), ("run/checkpoint/model.safetensors", "run/checkpoint/manifest.json")),
}
"""What the error says, and which files are left, the ones from before."""


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_leaves_what_was_there_before(
    case: str, disks: Path, told: dict[str, tuple[str, list[str]]]
) -> None:
    message, files = told[case]
    said, left = CASES[case]
    assert str(disks / case) in message
    assert [part for part in said if part not in message] == []
    assert [file for file in left if not any(there.endswith(file) for there in files)] == []
    assert not any("incomplete" in file or "replaced" in file for file in files)


@pytest.mark.parametrize(
    ("case", "message", "files"),
    [
        ("full", "cannot write to {0}/run (No space left on device)", ["filler"]),
        ("read-only", "cannot write to {0}/run (Read-only file system)", []),
        # A policy of half a megabyte, and four states, the one being written among them, of three times as much.
        ("room", "{0}/run is on a disk with 2 MB free, and the run writes about 7 MB there: make", ["filler"]),
    ],
)
def test_a_disk_that_will_not_do_is_told_before_anything_starts(
    case: str, message: str, files: list[str], disks: Path, told: dict[str, tuple[str, list[str]]]
) -> None:
    error, left = told[case]
    assert f"output: {message.format(disks / case)}" in error
    assert left == files
