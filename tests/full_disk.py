"""Runs on disks of 2 MB, in a process that mounts them: `python -m tests.full_disk FOLDER CHECKPOINT`.

`command` wraps it in a user and mount namespace of its own, so that it takes no rights and leaves no mount. It
forks, so that everything is imported once and not once a case.
"""

from __future__ import annotations

import importlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlvla.config import EnvConfig, GRPOConfig, LearnerConfig, LoraConfig, SamplerConfig
from tests.killed import fork, is_over

RECIPE = Path(__file__).resolve().parents[1] / "recipes/grpo.py"
DISK = 2 << 20


def can_mount() -> bool:
    """Whether this machine lets a process mount a tmpfs in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def command(folder: Path, checkpoint: Path) -> list[str]:
    """To run all cases, each on a small disk at a folder of its name."""
    return ["unshare", "-rm", sys.executable, "-m", "tests.full_disk", str(folder), str(checkpoint)]


def main(folder: Path, checkpoint: Path) -> None:
    """A line of JSON for each case: its name, the error, and what is left on the disk after it."""
    importlib.import_module("tests.learning")  # once, not in each child
    for name, case in CASES.items():
        disk = folder / name
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
        assert is_over(fork(partial(_report, name, case, disk, checkpoint)))


def _report(name: str, case: Callable[[Path, Path], None], disk: Path, checkpoint: Path) -> None:
    said = "nothing"
    try:
        case(disk, checkpoint)
    except OSError as error:
        said = str(error)
    files = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())
    print(json.dumps([name, said, files]), flush=True)


def _state(folder: Path, checkpoint: Path) -> None:
    """State after state of a run, until one does not fit."""
    from tests.learning import make_learner, make_run

    # Of LoRA's states nobody knows beforehand how large they are: the disk is not refused at once.
    lora = LearnerConfig(lora=LoraConfig())
    cfg = replace(_config(folder, checkpoint, save_every=1), keep_states=10, learner=lora)
    learner = make_learner(checkpoint)
    run = make_run(cfg, begin_state=learner.begin_state, finish_state=learner.finish_state)
    for step in range(10):
        run._keep(step)
    run._states.finish()


def _line(folder: Path, checkpoint: Path) -> None:
    """Steps on a disk that is full."""
    from tests.learning import make_run

    with make_run(_config(folder, checkpoint)) as run:
        run._log(0, {"num_trajectories": 1.0}, ())
        _fill(folder, all_but=0)
        for step in range(1, 1000):  # as long as the page that the file has
            run._log(step, {"num_trajectories": 1.0}, ())


def _policy(folder: Path, checkpoint: Path) -> None:
    """The end of a run, and that of a longer one in the same folder, which finds less room than its policy takes."""
    from tests.learning import make_learner, make_run

    cfg = _config(folder, checkpoint)
    with make_run(cfg, save=make_learner(checkpoint).save) as run:
        (cfg.output / "metrics.jsonl").touch()  # of no step
        run.finish()
        _fill(folder, all_but=(checkpoint / "model.safetensors").stat().st_size // 2)
        run.finish()


def _full(folder: Path, checkpoint: Path) -> None:
    _fill(folder, all_but=0)
    _grpo(_config(folder, checkpoint))


def _read_only(folder: Path, checkpoint: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    _grpo(_config(folder, checkpoint))


def _room(folder: Path, checkpoint: Path) -> None:
    """Of a run that would write 13 times a policy that fills a quarter of the disk."""
    shutil.copyfile(checkpoint / "model.safetensors", folder / "filler")
    _grpo(_config(folder, checkpoint, save_every=1))


def _config(folder: Path, checkpoint: Path, save_every: int = 0) -> GRPOConfig:
    return GRPOConfig(
        model=checkpoint,
        output=folder / "run",
        env=EnvConfig(id="lab/Bandit-v0", imports=("bandit",)),
        sampler=SamplerConfig(backend="transformers"),
        save_every=save_every,
    )


def _fill(folder: Path, all_but: int) -> None:
    """Leave so many bytes, or up to a page less."""
    (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - all_but))


def _grpo(cfg: GRPOConfig) -> None:
    """The recipe, which ends before it has started a process: Ray, and in its actors an engine or weights."""
    import psutil
    import ray

    recipe = runpy.run_path(str(RECIPE))["main"]
    try:
        recipe(cfg)
    finally:
        assert not ray.is_initialized()
        assert psutil.Process().children() == []


CASES = {"state": _state, "line": _line, "policy": _policy, "full": _full, "read-only": _read_only, "room": _room}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
