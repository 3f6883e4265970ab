"""The fuzzer itself: every target holds for a while, and what is planted is found."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fuzz
import fuzz_checkpoints
import fuzz_files
from fuzz_targets import FOLDER, TARGETS
from rlvla.annotation import schema
from rlvla.config.file import parse_yaml
from rlvla.data.read_video import decode
from rlvla.data.rows import decode_picture
from rlvla.policies.markup import parse_call, parse_text
from rlvla.policies.thinker.settings import parse_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_runs_of_every_target_find_nothing(name: str) -> None:
    """More of the fast ones: about a second each."""
    target = TARGETS[name]
    target.run(target.seeds[0])  # imports what it needs
    watch = fuzz.Watch(run=target.run, cpu_s=5.0, memory_mb=512.0)
    rng = random.Random(0)
    for seed in target.seeds:
        watch(seed)
    num_mutated = max(400, 50 * target.share)
    for _ in range(num_mutated):
        watch(fuzz.mutate(rng, target.seeds, target.tokens, target.max_bytes))
    assert watch.num_runs == len(target.seeds) + num_mutated


def reads_openvla(data: bytes) -> bool:
    from rlvla.policies.models.auto import load_config
    from rlvla.policies.models.openvla.checkpoint import read_norm_stats

    fuzz_checkpoints.openvla(data)
    config = load_config(FOLDER / "openvla")
    stats = read_norm_stats(FOLDER / "openvla", config)
    return config.num_patches == 256 and stats is not None and list(stats) == ["push"]


def reads_weights(data: bytes) -> bool:
    from rlvla.policies.models.openvla.checkpoint import read_weights

    fuzz_checkpoints.safetensors(data)
    return len(read_weights(FOLDER / "safetensors", fuzz_checkpoints.WEIGHTS)) == 2


def reads_frames(data: bytes) -> bool:
    fuzz_files.video(data)
    return [frame.shape for _, frame in decode(FOLDER / "video.mp4")] == [(32, 32, 3)] * 3


ACCEPTED: dict[str, Callable[[bytes], bool]] = {
    "markup": lambda data: not parse_text(data.decode())[-1][0].error,
    "calls": lambda data: not isinstance(parse_call(data.decode()), str),
    "answer": lambda data: not isinstance(schema.read(data.decode(), is_key=True, num_images=2), str),
    "picture": lambda data: decode_picture(data, "here").shape == (8, 8, 3),
    "checkpoint": lambda data: parse_settings(data, "x").action_decoding == "autoregressive",
    "config": lambda data: parse_yaml(data.decode(), "x")["num_steps"] == 3,
    "openvla": reads_openvla,
    "safetensors": reads_weights,
    "video": reads_frames,
}
"""Whether an input is good, where it is easily told."""


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_first_seed_of_a_target_is_good(name: str) -> None:
    """A target whose seeds are refused at the door would test nothing behind it."""
    assert ACCEPTED[name](TARGETS[name].seeds[0])


def raises(data: bytes) -> None:
    raise KeyError(data)


def spins(data: bytes) -> None:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass


def grows(data: bytes, kept: list[bytes] = []) -> None:  # noqa: B006 - a leak
    kept.append(random.Random(0).randbytes(20 << 20))


@pytest.mark.parametrize(("run", "error"), [(raises, KeyError), (spins, fuzz.FindingError), (grows, fuzz.FindingError)])
def test_an_exception_a_hang_and_a_leak_are_found(run: Callable[[bytes], None], error: type[Exception]) -> None:
    # The peak of this process may lie above what it has now: the leak has to get there first.
    watch = fuzz.Watch(run=run, cpu_s=0.01 if run is spins else 60.0, memory_mb=10.0)
    with pytest.raises(error):
        [watch(b"") for _ in range(200)]


def test_the_mutator_stays_within_the_bound_and_repeats_itself() -> None:
    def inputs() -> list[bytes]:
        rng = random.Random(7)
        return [fuzz.mutate(rng, (b"abc" * 50, b""), ("<think>",), 100) for _ in range(500)]

    made = inputs()
    assert made == inputs()
    assert max(map(len, made)) == 100
    assert len(set(made)) > 300
    assert any(b"<think>" in data for data in made)


def test_the_files_of_the_readers_are_removed_at_the_end() -> None:
    """Also where nothing but this was asked: tests import the table, and end otherwise than `scripts/fuzz.py`."""
    source = "from fuzz_targets import FOLDER; print(FOLDER if FOLDER.is_dir() else '')"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT / "scripts", capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip()
    assert not Path(done.stdout.strip()).exists()


def start(folder: Path, *options: str, targets: str) -> subprocess.CompletedProcess[str]:
    """The fuzzer over planted targets."""
    source = folder / "fuzz_targets.py"
    source.write_text(
        "import tempfile\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
        "FOLDER = Path(tempfile.mkdtemp(dir=Path(__file__).parent))\n\n"
        "@dataclass\nclass Target:\n    run: object\n    seeds: tuple = (b'a',)\n"
        f"    tokens: tuple = ()\n    max_bytes: int = 64\n    share: int = 1\n\n{targets}\n"
    )
    script = folder / "fuzz.py"
    script.write_text((ROOT / "scripts/fuzz.py").read_text())
    command = [sys.executable, str(script), "--engine", "plain", "--output", str(folder / "out"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_counts_exactly_and_reports(tmp_path: Path) -> None:
    targets = "TARGETS = {'a': Target(len, share=3), 'b': Target(len)}"
    done = start(tmp_path, "--runs", "1000", targets=targets)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["runs"], report["findings"], report["atheris"]) == (1000, 0, None)
    assert [report["targets"][name]["runs"] for name in "ab"] == [750, 250]
    assert report["targets"]["a"]["peak_mb"] > 1


def test_findings_are_kept_and_can_be_replayed(tmp_path: Path) -> None:
    targets = (
        "import os, time\n\ndef bad(data):\n    assert len(data) < 9, 'too long'\n\n"
        "def dies(data):\n    if len(data) > 8: os.kill(os.getpid(), 11)\n\n"
        "def hangs(data):\n    while len(data) > 8: pass\n\n"
        "TARGETS = {'bad': Target(bad), 'dies': Target(dies), 'hangs': Target(hangs), 'good': Target(len)}"
    )
    done = start(tmp_path, "--runs", "4000", "--cpu-s", "0.2", targets=targets)
    assert done.returncode == 1
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["findings"] == 3
    status = {name: result.get("status", 0) for name, result in report["targets"].items()}
    assert status == {"bad": 1, "dies": -11, "hangs": -27, "good": 0}
    assert "too long" in (tmp_path / "out/bad.log").read_text()
    for name in ("bad", "dies", "hangs"):
        assert len((tmp_path / f"out/{name}.bin").read_bytes()) > 8
    again = start(tmp_path, "--replay", str(tmp_path / "out/bad.bin"), "bad", targets=targets)
    assert again.returncode == 1
    assert "AssertionError: too long" in again.stderr


def test_how_long_has_to_be_said_and_targets_have_to_exist(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fuzz.parse([])
    done = start(tmp_path, "--seconds", "1", "c", targets="TARGETS = {'a': Target(len)}")
    assert "no target c; there are a" in done.stderr
