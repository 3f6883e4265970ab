"""Feed millions of wrong inputs to everything that reads what a model, a user or a stranger wrote.

python scripts/fuzz/fuzz.py --seconds 60                         each target for that long
python scripts/fuzz/fuzz.py markup calls --runs 1000000          some of them, that many inputs each
python scripts/fuzz/fuzz.py markup --replay outputs/fuzz/markup.bin

Atheris makes the inputs and steers them by coverage. A target ends at its first finding: an exception, a crash, more
than `--limit-s` or more than `--memory-mb` for one input. The input is kept, and the exit status is 1. Targets are in
`targets.py`.

Many targets write files: with `TMPDIR` on a RAM disk they run many times faster.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro


def main(
    targets: tuple[str, ...] = (),
    /,
    *,
    seconds: int = 0,
    runs: int = 0,
    seed: int = 0,
    limit_s: int = 5,
    memory_mb: int = 512,
    output: Path = Path("outputs/fuzz"),
    replay: Path | None = None,
) -> int:
    """Fuzz the targets one after another, each in a process of its own, and write `report.json`; returns the status.

    Args:
        targets: names; default: all.
        seconds: for each target; 0: as long as the runs take.
        runs: of each target; 0: as many as the seconds allow.
        seed: of atheris.
        limit_s: that one input may take, whole seconds.
        memory_mb: by which inputs may let the memory grow, MiB.
        output: corpus, logs and findings.
        replay: run the one target named on this input only.
    """
    from targets import TARGETS

    if unknown := [name for name in targets if name not in TARGETS]:
        raise SystemExit(f"no target {unknown[0]}; there are {', '.join(TARGETS)}")
    if replay:
        (name,) = targets
        TARGETS[name].run(replay.read_bytes())
        return 0
    if not (seconds or runs):
        raise SystemExit("say how long: --seconds, --runs or both")
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in targets or TARGETS:
        options = [f"-seed={seed + 1}", f"-timeout={limit_s}", f"-runs={runs or -1}", f"-max_total_time={seconds}"]
        results[name] = fuzz(name, memory_mb, output, options)
        print(f"{name:13s} {' '.join(f'{key} {value}' for key, value in results[name].items())}", flush=True)
        report = {
            "runs": sum(result["runs"] for result in results.values()),
            "findings": sum("finding" in result for result in results.values()),
            "bounds": {"limit_s": limit_s, "memory_mb": memory_mb},
            "seed": seed,
            "python": platform.python_version(),
            "atheris": metadata.version("atheris"),
            "targets": results,
        }
        (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return int(report["findings"] > 0)


def fuzz(name: str, memory_mb: int, output: Path, options: list[str]) -> dict[str, Any]:
    """One target: what libFuzzer counted, and the finding if there is one."""
    log, kept = output / f"{name}.log", output / f"{name}.bin"
    kept.unlink(missing_ok=True)
    script = Path(__file__).with_name("one.py")
    command = [sys.executable, str(script), name, str(memory_mb), str(output), f"-exact_artifact_path={kept}", *options]
    with log.open("w") as file, tempfile.TemporaryDirectory(prefix="rlvla-fuzz-") as folder:  # libFuzzer cleans nothing
        status = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False, env={**os.environ, "TMPDIR": folder}
        ).returncode
    stats = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", log.read_text(errors="replace"))}
    names = {"runs": "number_of_executed_units", "runs_per_s": "average_exec_per_sec", "peak_mb": "peak_rss_mb"}
    told: dict[str, Any] = {key: stats.get(stat, 0) for key, stat in names.items()}
    return told | ({"status": status, "finding": str(kept), "log": str(log)} if status else {})


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
