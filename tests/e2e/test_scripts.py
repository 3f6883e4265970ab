"""Every script that a user calls, for real and at its smallest, on what `make demo` leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.run import ROOT, script

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SMALL: dict[str, dict[str, Any]] = {
    "annotate": {"num_episodes": 400, "num_samples": 0},
    "sft": {
        "tiny": {"hidden_size": 128, "num_layers": 2, "vision_layers": 1, "image_size": 64, "patch_size": 8},
        "num_steps": 200,  # until it acts
        "batch_size": 32,
        "validate_every": 200,
        "validation_share": 0.02,
    },
    "grpo": {
        "num_steps": 1,
        "groups_per_step": 1,
        "group_size": 2,
        "max_waves": 1,
        "minibatch_trajectories": 2,
        "cluster": {"envs_per_actor": 2, "threads": 1},
    },
    "evaluate": {"num_trials": 2, "cluster": {"envs_per_actor": 2, "threads": 1}},
}
"""What the demo's configs are overridden with."""

COMMANDS: dict[str, Sequence[str]] = {
    "ablation.py": ("--demo", "{demo}", "--configs", "{configs}", "--output", "{out}"),
    "benchmark/annotate.py": (
        *("--sides", "16", "--frames", "20", "--repeats", "1", "--concurrency", "1", "2", "--latency", "0.01"),
        *("--seconds", "0.1", "--output", "{out}/result.json", "--chart", "{out}/chart.svg"),
    ),
    "benchmark/modes.py": (
        *("--model", "{demo}/grpo/checkpoint", "--config", "{configs}/evaluate_tiny_tabletop.yaml"),
        *("--num-decisions", "3", "--rounds", "6", "--num-trajectories", "2", "--output", "{out}/result.json"),
    ),
    "check_annotations.py": ("--num-episodes", "2", "--output", "{out}/result.json"),
    "doctor.py": ("--quiet",),
    "fuzz/fuzz.py": ("markup", "calls", "--runs", "200", "--output", "{out}"),
    "report.py": ("{demo}", "{demo}/sft", "{demo}/grpo", "{demo}/evaluate_grpo", "--output", "{out}/report.html"),
    "score.py": ("{demo}/grpo/trajectories.jsonl", "--config", "{configs}/grpo_tiny_tabletop.yaml"),
    "table.py": ("{demo}/evaluate_grpo",),
}
ON_LIBERO: dict[str, Sequence[str]] = {
    "benchmark/libero_env.py": ("--rounds", "1", "--chunks", "1", "--output", "{out}/result.json"),
    "check_libero.py": ("--suites", "libero_object", "--tasks", "0", "--json", "{out}/result.json"),
    "check_libero_expert.py": (
        *("--suites", "libero_object", "--tasks", "0", "--first-state", "1", "--num-states", "1"),
        *("--json", "{out}/result.json"),
    ),
}
ELSEWHERE = {
    "audit.py": ".ci/run",  # by `make audit`, before the tests
    "benchmark/grpo.py": "tests/e2e/test_scripts.py",
    "benchmark/actions.py": "tests/e2e/test_benchmark_actions.py",
    "benchmark/annotation_server.py": "scripts/benchmark/annotate.py",
    "demo.py": "tests/e2e/test_scripts.py",
    "fuzz/one.py": "scripts/fuzz/fuzz.py",
    "merge_adapter.py": "tests/unit/test_lora.py",
    "soak/soak.py": "tests/e2e/test_scripts.py",
    "torchvision_cpu_hook.py": "tests/unit/test_packaging.py",
}
"""Script -> who runs it, and names it."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    for name, small in SMALL.items():
        file = ROOT / f"recipes/configs/{name}_tiny_tabletop.yaml"
        (folder / file.name).write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | small))
    return folder


@pytest.fixture(scope="module")
def demo(configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "demo"
    printed = script("scripts/demo.py", "--output", output, "--configs", configs)
    assert len(re.findall(r"success .* \(Wilson 95 %, 2 held-out states\)", printed)) == 3
    assert "<svg" in (output / "report.html").read_text()
    return output


def run(name: str, arguments: Sequence[str], **places: Path) -> str:
    return script(f"scripts/{name}", *(argument.format(**places) for argument in arguments))


def test_every_script_is_run_by_a_test() -> None:
    files = (ROOT / "scripts").rglob("*.py")
    scripts = {str(file.relative_to(ROOT / "scripts")) for file in files if '"__main__"' in file.read_text()}
    assert scripts == {*COMMANDS, *ON_LIBERO, *ELSEWHERE}
    for name, where in ELSEWHERE.items():
        assert Path(name).stem in (ROOT / where).read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_runs_on_what_the_demo_leaves(name: str, demo: Path, configs: Path, tmp_path: Path) -> None:
    run(name, COMMANDS[name], demo=demo, configs=configs, out=tmp_path)
    for file in tmp_path.rglob("result.json"):
        assert json.loads(file.read_text())


@pytest.mark.libero
@pytest.mark.parametrize("name", ON_LIBERO)
def test_a_script_runs_on_libero(name: str, libero_assets: Path, tmp_path: Path) -> None:
    printed = run(name, ON_LIBERO[name], out=tmp_path)
    assert name != "check_libero.py" or printed == "1/1\n"
    assert json.loads((tmp_path / "result.json").read_text())


def test_the_soak_ends_with_a_verdict(demo: Path, tmp_path: Path) -> None:
    """Which may be that it was too short for a step: a busy machine starts slowly."""
    flags = ("--minutes", "0.5", "--calm", "0.2", "--every", "10", "--output", tmp_path / "soak")
    try:
        script("scripts/soak/soak.py", "--model", demo / "sft/checkpoint", *flags)
    except AssertionError:
        assert json.loads((tmp_path / "soak/soak.json").read_text())["problems"] == ["no step was finished"]
    assert "<svg" in (tmp_path / "soak/soak.svg").read_text()


def test_the_benchmark_measures_everything_and_writes_it_down(demo: Path, configs: Path, tmp_path: Path) -> None:
    file = tmp_path / "results/benchmark.json"
    printed = script(
        "scripts/benchmark/grpo.py",
        *("--model", demo / "sft/checkpoint", "--config", configs / "grpo_tiny_tabletop.yaml"),
        *("--num-trajectories", "2", "--repeats", "1", "--seed", "3", "--output", file),
    )
    result = json.loads(file.read_text())
    for ratio in ("rollout_vs_lockstep", "learner_vs_padded", "learner_vs_longest"):
        assert f"{result[ratio]:.2f}x" in printed
    assert 0 < result["sync_fraction"] < 1
    assert result["trl"] or result["trl_reason"]
    assert result["machine"]["cpu"]
    assert result["packages"]["torch"]
    # Both rollouts played the same episodes with the same policy, so that neither got through them by giving up.
    assert result["rollout"]["decisions_per_trajectory"] >= 1
    assert result["lockstep"]["decisions_per_trajectory"] >= 1
