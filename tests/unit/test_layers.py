"""Imports point only at earlier layers. A new arrow is a change of design: edit LAYERS, and say why in the commit."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = [
    ["types", "pictures", "config", "config_file", "files"],
    ["models"],
    [
        *("protocols", "markup", "actions", "tools", "plugins", "metrics", "trials", "storage", "prompt"),
        *("action_slots", "checkpoint", "ledger", "random_state", "interrupts", "skipping"),
        *("dataset", "dataset_rows", "dataset_checks", "tables", "demonstrations", "action_kind"),
        *("read_hdf5", "read_lerobot", "read_video"),
        *("report", "svg_chart"),
    ],
    ["vllm_plugin"],
    ["advantage", "loss", "collate"],
    [
        *("hybrid_mask", "policy", "tiny_vlm", "sampler", "sampler_engine", "sampler_prompts", "hf_sampler"),
        *("turn_context", "env_thread", "env_server", "env_process", "episode", "cold_start", "testing", "identity"),
    ],
    ["rollout", "learner_engine", "learner", "master_weights"],
    ["weight_sync", "dispatch", "placement", "cluster", "annotation"],
    ["preflight", "disk", "run", "evaluation", "sft"],
    ["plan_model", "plan_architecture", "plan_memory", "plan_speed", "plan_world", "plan_report", "plan"],
]
"""Modules of `rlvla`, and its sub-packages as one; those of one layer may import each other."""
RANK = {f"rlvla.{module}": number for number, layer in enumerate(LAYERS) for module in layer}
PACKAGES = {
    "envs/rlvla_envs": {"rlvla.types", "rlvla.markup", "rlvla.pictures"},
    "reward/rlvla_reward": {"rlvla.types", "rlvla.markup", "rlvla.config", "rlvla.plugins", "rlvla.protocols"},
}
"""Folder -> what of `rlvla` its modules may import."""
MODULES = sorted(path for path in (ROOT / "rlvla").rglob("*.py") if path != ROOT / "rlvla/__init__.py")


def rank(module: str) -> int | None:
    """The layer of a module, or of the sub-package that it is in; None where it is not ours."""
    return RANK.get(".".join(module.split(".")[:2]))


def name(path: Path) -> str:
    """The module in a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, `from rlvla import types` as `rlvla.types`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name, not relatively"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names} if module == "rlvla" else set()
            yield from names & RANK.keys() or {module}


def test_every_module_has_a_layer() -> None:
    assert {name(path) for path in MODULES if rank(name(path)) is None} == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_at_earlier_layers(path: Path) -> None:
    own = rank(name(path))
    assert own is not None
    for module in imports(path):
        assert module.split(".")[0] not in ("rlvla_envs", "rlvla_reward", "recipes", "scripts", "tests"), module
        assert (rank(module) or 0) <= own, f"{path.name} imports {module}, which is of a later layer"


@pytest.mark.parametrize("folder", PACKAGES)
def test_envs_and_rewards_use_little_of_rlvla(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    own = Path(folder).name
    for path in files:
        for module in imports(path):
            assert not module.startswith("rlvla_") or module.split(".")[0] == own, f"{path} imports {module}"
            is_of_rlvla = module.split(".")[0] == "rlvla"
            assert not is_of_rlvla or module in PACKAGES[folder], f"{path} imports {module}"
