"""The fuzzer itself: every target holds for a while, and what is planted is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import target
import targets
from rlvla.annotation import schema
from rlvla.data.dataset import DatasetError
from rlvla.data.read_video import decode
from rlvla.policies.markup import parse_call, parse_text
from rlvla.policies.models.auto import load_config
from rlvla.policies.models.openvla.checkpoint import read_norm_stats, read_weights
from rlvla.policies.thinker.settings import parse_settings
from targets import TARGETS, WORDS

ROOT = Path(__file__).resolve().parents[2]
PIECES = st.sampled_from([word.encode() for word in WORDS]) | st.binary(max_size=8)
EDITS = st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 32), PIECES), max_size=6)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for start, length, piece in edits:
        start %= len(data) + 1
        data = data[:start] + piece + data[start + length :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_runs_of_every_target_find_nothing(name: str) -> None:
    one = TARGETS[name]
    for seed in one.seeds:
        one.run(seed)

    @settings(max_examples=250, deadline=5000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.builds(edited, st.sampled_from(one.seeds), EDITS) | st.binary(max_size=256))
    def holds(data: bytes) -> None:
        one.run(data)

    holds()


def reads_weights(data: bytes) -> bool:
    targets.safetensors(data)
    return len(read_weights(target.FOLDER / "safetensors", targets.WEIGHTS)) == 2


def reads_openvla(data: bytes) -> bool:
    targets.openvla(data)
    config = load_config(target.FOLDER / "openvla")
    return config.num_patches == 256 and [*(read_norm_stats(target.FOLDER / "openvla", config) or {})] == ["push"]


def reads_frames(data: bytes) -> bool:
    targets.video(data)
    return [frame.shape for _, frame in decode(target.FOLDER / "video.mp4")] == [(32, 32, 3)] * 3


ACCEPTED: dict[str, Callable[[bytes], bool]] = {
    "markup": lambda data: not parse_text(data.decode())[-1][0].error,
    "calls": lambda data: not isinstance(parse_call(data.decode()), str),
    "answer": lambda data: not isinstance(schema.read(data.decode(), is_key=True, num_images=2), str),
    "checkpoint": lambda data: parse_settings(data, "x").action_decoding == "autoregressive",
    "openvla": reads_openvla,
    "safetensors": reads_weights,
    "video": reads_frames,
}
"""Whether an input is good, where a target that does so asks several readers, or one that raises nothing."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_seed_of_a_target_is_good(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose seeds are refused at the door would test nothing behind it."""
    seed = TARGETS[name].seeds[0]
    if name in ACCEPTED:
        assert ACCEPTED[name](seed)
        return
    monkeypatch.setattr(targets, "refused", lambda *_: nullcontext())
    missing = pytest.raises(DatasetError, match=r"000000\.parquet: this table is missing")
    with missing if name == "lerobot" else nullcontext():
        TARGETS[name].run(seed)


def test_a_refusal_has_to_name_its_place() -> None:
    with target.refused(ValueError, "here"):
        raise ValueError("here: wrong")
    with pytest.raises(AssertionError, match="here is not named"), target.refused(ValueError, "here"):
        raise ValueError("wrong")
    with pytest.raises(KeyError), target.refused(ValueError, ""):
        raise KeyError


PLANTED = """
import os
from target import TARGETS, WORDS, target

@target(b"a")
def bad(data): assert len(data) < 9, "too long"

@target(b"a")
def dies(data): len(data) > 8 and os.kill(os.getpid(), 11)

@target(b"a")
def hangs(data):
    while len(data) > 8: pass

@target(b"a")
def grows(data, kept=[]): kept.append(os.urandom(20 << 20))

@target(b"a")
def good(data): len(data)
"""


def start(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The fuzzer over planted targets."""
    for name in ("fuzz.py", "one.py", "target.py"):
        shutil.copy(ROOT / "scripts/fuzz" / name, folder)
    (folder / "targets.py").write_text(PLANTED)
    command = [sys.executable, str(folder / "fuzz.py"), *options, "--output", str(folder / "out")]
    env = {**os.environ, "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


def test_findings_are_kept_counted_and_replayed(tmp_path: Path) -> None:
    done = start(tmp_path, "--runs", "4000", "--limit-s", "1", "--memory-mb", "100")
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["findings"] == 4
    assert [name for name, result in report["targets"].items() if "finding" not in result] == ["good"]
    assert report["targets"]["good"]["runs"] == 4000
    assert report["targets"]["good"]["peak_mb"] > 1
    assert "too long" in (tmp_path / "out/bad.log").read_text()
    for name in ("bad", "dies", "hangs"):
        assert len((tmp_path / f"out/{name}.bin").read_bytes()) > 8
    again = start(tmp_path, "bad", "--replay", str(tmp_path / "out/bad.bin"))
    assert again.returncode == 1
    assert "AssertionError: too long" in again.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
