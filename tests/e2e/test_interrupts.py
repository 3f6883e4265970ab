"""Ctrl-C and SIGTERM, sent to real recipes: what they leave behind, with which code they end, and that all of them do.

The policy is random and the env takes one step, so that a recipe is in its loop as soon as Ray is up.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlvla.durable.checkpoints import damage
from rlvla.durable.files import read_lines
from rlvla.durable.interrupts import GRACE_S
from tests.e2e.run import TORCHRUN, actors, end, noted, recipe, running, struck, wait_until
from tests.full_disk import can_mount

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ENV = {"id": "lab/Bandit-v0", "imports": ["bandit"]}
SECRET = "a-key-that-nobody-may-read"


def grpo(checkpoint: Path, output: Path) -> dict[str, Any]:
    return {
        "model": str(checkpoint),
        "output": str(output),
        "env": ENV,
        "episode": {"mode": "act", "max_turn_tokens": 128, "temperature": 1.0},
        "cluster": {"envs_per_actor": 1, "threads": 1},
        "sampler": {"backend": "transformers"},
        "reward": [{"fn": f"{Path(__file__).parent}/rewards.py:odd_tokens"}],
        "loss": {"kl_coef": 0.0},
        "learner": {"lr": 1e-3, "micro_batch_rows": 8},
        "num_steps": 100_000,
        "groups_per_step": 1,
        "group_size": 2,
    }


def demos(output: Path) -> dict[str, Any]:
    plugins = {"expert": "bandit:play", "annotator": "bandit:annotate", "checks": {"names": ["markup"]}}
    return {"output": str(output), "env": ENV, "chunk_length": 1, **plugins}


def num_steps(output: Path) -> int:
    file = output / "metrics.jsonl"
    return len(read_lines(file)) if file.is_file() else 0


def strangers_ports(pid: int) -> list[str]:
    """What a recipe and all that it started listen on where others could reach it."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    listening = [
        (member.name(), connection.laddr)
        for member in family
        for connection in member.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 6  # the driver, gcs_server, raylet, and the actors
    return [f"{name} {at.ip}:{at.port}" for name, at in listening if at.ip.removeprefix("::ffff:") != "127.0.0.1"]


def ray_logs(pid: int) -> Path:
    """Ray's folder of logs."""
    for member in psutil.Process(pid).children():
        for argument in member.cmdline():
            if argument.startswith("--log_dir="):
                return Path(argument.removeprefix("--log_dir="))
    raise AssertionError("no process of Ray's names its logs")


def files_with(secret: str, *folders: Path) -> list[Path]:
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert files
    return [file for file in files if secret.encode() in file.read_bytes()]


def test_sigterm_saves_the_state_that_the_same_command_goes_on_from(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way: nothing listens where others could reach it, and keys of the environment are written nowhere."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    output = tmp_path / "run"
    config = grpo(checkpoint, output)
    with running("grpo", config, tmp_path) as process:
        wait_until(lambda: num_steps(output) >= 3, process, tmp_path)
        num_children = len(psutil.Process(process.pid).children(recursive=True))
        assert strangers_ports(process.pid) == []
        logs = ray_logs(process.pid)
        code = end(process, process.terminate)
    assert num_children >= 5  # Ray's own and three actors: there was something to end
    assert code == 128 + signal.SIGTERM
    steps = num_steps(output)
    (state,) = (output / "state").iterdir()
    assert state.name == f"step-{steps:06d}"
    assert json.loads((state / "driver.json").read_text())["position"] == steps  # a dropped rollout's task comes again
    # It is complete when the next signal comes, which finds it closing its actors: no reason to end otherwise.
    closing = struck("__exit__", "_close_actors", signal.SIGTERM)
    changed = {"num_steps": steps + 2, "learner": config["learner"] | {"lr": 5e-4}}
    recipe("grpo", config | changed, tmp_path, launcher=closing)
    assert [line["step"] for line in read_lines(output / "metrics.jsonl")] == list(range(steps + 2))
    assert [line["lr"] for line in read_lines(output / "metrics.jsonl")] == [1e-3] * steps + [5e-4] * 2
    assert (output / "checkpoint/model.safetensors").is_file()
    assert files_with("groups_per_step", tmp_path)  # the search finds what is there
    assert files_with(SECRET, tmp_path, logs) == []


def test_control_c_ends_an_evaluation_of_which_all_trials_stay(checkpoint: Path, tmp_path: Path) -> None:
    """As a terminal sends it, to all processes at once; that of vLLM's engine, which is looked at on the way, too."""
    trials = tmp_path / "run/trials.jsonl"
    config = {"model": str(checkpoint), "output": str(tmp_path / "run"), "env": ENV, "num_trials": 1000}
    config["cluster"] = grpo(checkpoint, tmp_path)["cluster"]
    config["episode"] = {"mode": "act", "max_turn_tokens": 128, "temperature": 0.0}

    def lines() -> list[str]:
        return trials.read_text().splitlines() if trials.is_file() else []

    with running("evaluate", config, tmp_path) as process:
        wait_until(lambda: len(lines()) > 3, process, tmp_path)
        assert strangers_ports(process.pid) == []
        code = end(process, lambda: os.killpg(process.pid, signal.SIGINT))
    assert code == 128 + signal.SIGINT
    assert 3 < len(lines()) < 1001
    assert not (tmp_path / "run/summary.json").exists()


def test_control_c_ends_annotation_and_keeps_what_is_annotated(tmp_path: Path) -> None:
    takes = tmp_path / "demos.partial/takes"
    config = demos(tmp_path / "demos") | {"num_episodes": 100_000}
    for _ in range(2):  # the second time it goes on
        least = len(list(takes.glob("*.take"))) + 3
        with running("annotate", config, tmp_path) as process:
            wait_until(lambda least=least: len(list(takes.glob("*.take"))) >= least, process, tmp_path)
            code = end(process, lambda process=process: os.killpg(process.pid, signal.SIGINT))
        assert code == 128 + signal.SIGINT
    assert not (tmp_path / "demos").exists()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    recipe("annotate", demos(folder / "demos") | {"num_episodes": 20}, folder)
    return folder / "demos"


def sft(dataset: Path, folder: Path) -> dict[str, Any]:
    return {
        "dataset": str(dataset),
        "output": str(folder / "run"),
        "tiny": {"hidden_size": 64, "num_layers": 1, "vision_layers": 1, "image_size": 32},
        "num_bins": 8,
        "gripper_dim": None,
        "num_steps": 100_000,
        "batch_size": 4,
        "validate_every": 100_000,
    }


def test_a_cold_start_that_diverges_stops_with_what_it_was_to_learn_from(dataset: Path, tmp_path: Path) -> None:
    config = sft(dataset, tmp_path) | {"learner": {"lr": 1e30, "max_skipped_steps": 2}}
    with running("sft", config, tmp_path) as process:
        assert process.wait(timeout=200) == 1
    log = (tmp_path / "log").read_text()
    assert "not finite in 3 steps in a row, the last of them step" in log
    assert "learner.max_skipped_steps is 2" in log
    bad = sorted((tmp_path / "run").glob("bad_step_*.json"))
    assert len(bad) == 3
    assert len(json.loads(bad[0].read_text())["rows"]) == config["batch_size"]
    assert [line["skipped_updates"] for line in read_lines(tmp_path / "run/metrics.jsonl")][-3:] == [1, 1, 1]


@pytest.mark.parametrize(
    ("actor", "number", "asked"),
    [
        ("LearnerActor", signal.SIGINT, ("main", "learn")),
        ("SamplerActor", signal.SIGTERM, ("sync", "_give_weights")),
    ],
    ids=["control-c-while-it-learns", "sigterm-while-it-synchronises-weights"],
)
def test_a_step_that_a_signal_finds_behind_its_rollout_is_finished(
    actor: str, number: signal.Signals, asked: tuple[str, str], checkpoint: Path, tmp_path: Path
) -> None:
    """The learner is stopped before it learns, or the sampler before it takes weights, until the signal was sent.

    SIGTERM to the recipe alone; SIGINT as a terminal sends it, to all of `recipe 2>&1 | tee log`: `tee` ends at once.
    """
    is_control_c, calls = number == signal.SIGINT, tmp_path / "calls"
    output = tmp_path / "run"
    reward = {"fn": f"{Path(__file__).parent}/freezing.py:freeze", "kwargs": {"actor": actor, "folder": str(tmp_path)}}
    config = grpo(checkpoint, output) | {"reward": [reward]}
    with running("grpo", config, tmp_path, noted(*asked, calls), with_tee=is_control_c) as process:
        wait_until(lambda: num_steps(output) >= 1, process, tmp_path)
        (tmp_path / "freeze").touch()
        wait_until((tmp_path / "frozen").exists, process, tmp_path)
        wait_until(lambda: calls.stat().st_size > num_steps(output), process, tmp_path)  # of the actor that is stopped
        steps = num_steps(output)

        def send() -> None:
            os.killpg(process.pid, number) if is_control_c else process.send_signal(number)
            time.sleep(1)
            assert process.poll() is None
            assert num_steps(output) == steps
            psutil.Process(int((tmp_path / "frozen").read_text())).resume()

        code = end(process, send)
    assert code == 128 + number
    assert num_steps(output) == steps + 1  # of a rollout that was dropped there would be no line
    assert [state.name for state in (output / "state").iterdir()] == [f"step-{steps + 1:06d}"]


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["control-c-alone", "sigterm-two-ranks"])
def test_a_signal_saves_a_cold_start(launcher: tuple[str, ...], dataset: Path, tmp_path: Path) -> None:
    config, output = sft(dataset, tmp_path), tmp_path / "run"
    with running("sft", config, tmp_path, launcher) as process:
        wait_until(lambda: num_steps(output) >= 3, process, tmp_path)
        code = end(process, process.terminate if launcher else lambda: os.killpg(process.pid, signal.SIGINT))
    assert [state.name for state in (output / "state").iterdir()] == [f"step-{num_steps(output):06d}"]
    assert code == (1 if launcher else 128 + signal.SIGINT)  # torchrun ends with a code of its own
    if not launcher:  # it goes on, for a step, with what has been changed
        steps = num_steps(output)
        recipe("sft", config | {"num_steps": steps + 1, "learner": {"lr": 0.0123}}, tmp_path)
        assert [line["lr"] for line in read_lines(output / "metrics.jsonl")] == [2e-5] * steps + [0.0123]


def test_a_signal_in_the_final_checkpoint_of_a_cold_start_loses_nothing_but_its_evaluation(
    dataset: Path, tmp_path: Path
) -> None:
    config, output = sft(dataset, tmp_path) | {"num_steps": 2, "env": ENV, "num_trials": 1}, tmp_path / "run"
    with running("sft", config, tmp_path, struck("save", "save_policy", signal.SIGTERM)) as process:
        assert process.wait(timeout=200) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()[-3000:]
    assert damage(output / "checkpoint") == ""
    assert not (output / "evaluate").exists()
    assert not (output / "summary.json").exists()


def test_a_cold_start_whose_rank_is_killed_ends_where_an_unbroken_one_ends(dataset: Path, tmp_path: Path) -> None:
    """One of two; of a single one `test_loop.py` shows it."""
    config, output = sft(dataset, tmp_path) | {"num_steps": 40, "save_every": 3}, tmp_path / "run"
    recipe("sft", config | {"output": str(tmp_path / "unbroken")}, tmp_path, launcher=TORCHRUN)
    with running("sft", config, tmp_path, TORCHRUN) as process:
        wait_until(lambda: (output / "state/step-000006").is_dir(), process, tmp_path)
        end(process, psutil.Process(process.pid).children()[-1].kill)
    assert not (output / "checkpoint").exists()
    recipe("sft", config, tmp_path, launcher=TORCHRUN)
    assert len(list((output / "state/step-000039").glob("rank_*.pt"))) == 2
    folders = (output, tmp_path / "unbroken")
    weights = [(folder / "checkpoint/model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    losses = [[line["loss"] for line in read_lines(folder / "metrics.jsonl")] for folder in folders]
    assert losses[0] == losses[1]
    assert len(losses[0]) == config["num_steps"]


@pytest.mark.skipif(not can_mount(), reason="this machine lets no process mount a tmpfs of its own")
def test_a_cold_start_on_two_disks_is_told_with_its_first_state(dataset: Path, tmp_path: Path) -> None:
    config, output = sft(dataset, tmp_path) | {"num_steps": 2, "save_every": 1}, tmp_path / "run"
    output.mkdir()
    launcher = (*TORCHRUN, str(Path(__file__).with_name("own_disk.py")), "1", str(output))
    with running("sft", config, tmp_path, launcher) as process:
        assert process.wait(timeout=200) == 1
    log = (tmp_path / "log").read_text()
    assert re.search(r"step-000001 could not be written .* of rank 1 on .*must be a folder that all nodes share", log)
    assert list((output / "state").iterdir()) == []
    assert num_steps(output) == 1


def test_a_signal_while_ray_starts_ends_the_run_at_once(checkpoint: Path, tmp_path: Path) -> None:
    with running("grpo", grpo(checkpoint, tmp_path / "run"), tmp_path) as process:
        wait_until(lambda: bool(psutil.Process(process.pid).children(recursive=True)), process, tmp_path)
        code = end(process, process.terminate)
    assert code == 128 + signal.SIGTERM
    assert not (tmp_path / "run/state").exists()


def test_a_second_signal_ends_a_run_that_is_stuck(checkpoint: Path, tmp_path: Path) -> None:
    """The first finds a learner that never answers, hence a step that never ends."""
    output = tmp_path / "run"
    with running("grpo", grpo(checkpoint, output), tmp_path) as process:
        wait_until(lambda: num_steps(output) >= 1, process, tmp_path)
        (learner,) = actors(process.pid, "LearnerActor")
        learner.suspend()
        asked = time.monotonic()
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        code = end(process, process.terminate)
        assert time.monotonic() < asked + GRACE_S  # it was not the time that ended it
    assert code == 128 + signal.SIGTERM
