"""A run on a disk of a megabyte, in a process that has mounted one: `python -m tests.full_disk CASE FOLDER CHECKPOINT`.

`command` wraps it in a user and mount namespace of its own, so that it takes no rights and leaves no mount.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import rlvla_reward
from rlvla.config import GRPOConfig
from rlvla.files import claim, folder_appears_whole

DISK = 2 << 20


def can_mount() -> bool:
    """Whether this machine lets a process mount a tmpfs in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def command(case: str, folder: Path, checkpoint: Path) -> list[str]:
    """To run `case` with a small disk mounted at `folder`."""
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && exec "$3" -m tests.full_disk "$4" "$2" "$5"'
    arguments = [str(DISK), str(folder), sys.executable, case, str(checkpoint)]
    return ["unshare", "-rm", "sh", "-c", script, "sh", *arguments]


def main(case: str, folder: Path, checkpoint: Path) -> None:
    """Print what is left on the disk after the error, and the error."""
    try:
        {"checkpoint": _checkpoint, "claim": _claim, "read-only": _read_only, "room": _room}[case](folder, checkpoint)
    except OSError as error:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        print(f"{error} | {files}")
        return
    raise AssertionError(f"{case} went through")


def _checkpoint(folder: Path, checkpoint: Path) -> None:
    """State after state, until one does not fit."""
    from tests.learning import make_learner

    learner = make_learner(checkpoint)
    for step in range(10):
        with folder_appears_whole(folder / f"state/step-{step:06d}") as aside:
            learner.save_state(aside / "learner")


def _claim(folder: Path, checkpoint: Path) -> None:
    try:
        (folder / "filler").write_bytes(bytes(2 * DISK))
    finally:
        claim(folder / "run", num_bytes=0)


def _read_only(folder: Path, checkpoint: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    claim(folder / "run", num_bytes=0)


def _room(folder: Path, checkpoint: Path) -> None:
    """A whole run, which would write four times a policy that fills a quarter of the disk."""
    shutil.copyfile(checkpoint / "model.safetensors", folder / "filler")
    from rlvla.run import GRPORun

    cfg = GRPOConfig(model=checkpoint, output=folder / "run", save_every=1)
    GRPORun(cfg, rlvla_reward.build(cfg.reward))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
