"""A GRPO run whose driver is killed, and whose checkpoint is damaged, ends where an unbroken one ends.

Bit for bit: weights, metrics, and the ids of what was sampled and learned from. Likewise one that trains LoRA under
ZeRO-2 on two learners, one of which is killed.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from rlvla.durable.trajectories import load_trajectories
from rlvla.run.ledger import balance
from rlvla.run.metrics import read_metrics
from tests.e2e.run import ROOT, environment, recipe, struck
from tests.learning import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_STEPS = 8


def config(folder: Path) -> dict[str, Any]:
    return {
        "model": str(folder / "policy"),
        "output": str(folder / "run"),
        "env": {"id": "lab/Bandit-v0", "imports": ["bandit"]},
        "episode": {"max_turn_tokens": 96, "max_think_tokens": 8},
        "sampler": {"backend": "transformers", "threads": 1},  # no request feels what runs beside it
        "cluster": {"envs_per_actor": 4, "threads": 1},
        "reward": [{"fn": "success"}, {"fn": f"{Path(__file__).parent}/rewards.py:moods"}],
        "learner": {"lr": 1e-3, "micro_batch_rows": 4, "schedule": "cosine"},
        "num_steps": NUM_STEPS,
        "groups_per_step": 3,
        "group_size": 2,
        "max_waves": 3,
        "minibatch_trajectories": 2,
        "save_every": 1,
        "keep_states": NUM_STEPS,  # the test counts them
    }


class Run:
    """The recipe in a process of its own, with its standard error kept, to be killed."""

    def __init__(self, folder: Path, cfg: dict[str, Any] | None = None, launcher: Sequence[str] = ()) -> None:
        file = folder / "grpo.yaml"
        file.write_text(yaml.safe_dump(cfg or config(folder)))
        self._said = folder / "stderr"
        command = [sys.executable, *launcher, str(ROOT / "recipes/grpo.py"), "--config", str(file)]
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait_until(self, condition: Callable[[], bool], every_s: float = 0.001) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert self._process.poll() is None, f"it ended by itself:\n{self.said[-3000:]}"
            assert time.monotonic() < deadline, "it did not get so far"
            time.sleep(every_s)

    def actors(self) -> list[psutil.Process]:
        """What Ray has started of ours; its own agents end by themselves, though a minute after their raylet."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended a moment ago
                found += [process for title in process.cmdline()[:1] if re.match(r"ray::\w+Actor", title)]
        return found

    def kill_when(self, condition: Callable[[], bool]) -> None:
        """SIGKILL to the driver alone; the rest must end by itself."""
        actors = self._all_actors()
        self.wait_until(condition)
        self._process.kill()
        self._wait_until_killed(actors)

    def wait_until_killed(self) -> None:
        """By its launcher; the rest must end by itself."""
        self._wait_until_killed(self._all_actors())

    def _all_actors(self, num: int = 3) -> list[psutil.Process]:
        self.wait_until(lambda: len(self.actors()) == num, every_s=0.5)
        return self.actors()

    def _wait_until_killed(self, actors: list[psutil.Process]) -> None:
        assert self._process.wait(240) == -signal.SIGKILL, self.said[-3000:]
        _, alive = psutil.wait_procs(actors, timeout=60)
        assert not alive, "processes that outlive their driver"

    def finish(self) -> str:
        """Run to the end; what it said."""
        assert self._process.wait(400) == 0, self.said[-3000:]
        return self.said

    def kill_learner(self, num_learners: int, condition: Callable[[], bool]) -> str:
        """SIGKILL to one of them; what the driver says when it has ended."""
        actors = self._all_actors(2 + num_learners)  # before, since steps go on meanwhile
        learner, *_ = (actor for actor in actors if "LearnerActor" in actor.cmdline()[0])
        self.wait_until(condition)
        learner.kill()
        assert self._process.wait(120) != 0
        return self.said


def states(output: Path) -> list[Path]:
    return sorted((output / "state").glob("step-*"))


def metrics(run: Path) -> list[dict[str, float | None]]:
    """Of each step, all but how long things took."""
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in read_metrics(run / "metrics.jsonl")]


def ids(run: Path) -> list[dict[str, Any]]:
    """The lines of the ledger."""
    return [json.loads(line) for line in (run / "ids.jsonl").read_text().splitlines()]


def learned(checkpoint: Path) -> dict[str, np.ndarray]:
    """The weights of a policy, those of its adapter where it has one."""
    adapter = checkpoint / "adapter/adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else checkpoint / "model.safetensors")


def assert_same_learned_weights(expected: Path, found: Path, start: Path) -> None:
    """Two policies are the same bit for bit, and another than the one that they started from."""
    old, one, other = (learned(folder) for folder in (start, expected, found))
    assert any(not np.array_equal(old.get(name, np.zeros_like(weight)), weight) for name, weight in one.items())
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.tobytes() == other[name].tobytes(), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    make_checkpoint(folder / "policy")
    recipe("grpo", config(folder), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")  # shown when a test fails
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("broken")
    make_checkpoint(folder / "policy")

    output = folder / "run"

    # In the middle of writing a checkpoint.
    Run(folder, launcher=struck("_checkpoint", "save_trajectories", signal.SIGKILL, count=2)).wait_until_killed()
    assert any((output / "state").glob("incomplete-*"))

    # In a weight sync, that of the resume or of the first step; anywhere in a step.
    sync = struck("sync_weights", "get_all", signal.SIGKILL, count=rng.randint(1, 2))
    Run(folder, launcher=sync).wait_until_killed()
    run, before = Run(folder), len(states(output))
    run.wait_until(lambda: len(states(output)) > before)
    moment = time.monotonic() + rng.uniform(0, 0.8)
    run.kill_when(lambda: time.monotonic() > moment)

    newest = states(output)[-1]
    file = newest / "learner/rank_0.pt"
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)

    # In the middle of writing the policy, or behind it.
    run = Run(folder, launcher=struck("finish", rng.choice(["note_trained", "write_json"]), signal.SIGKILL))
    run.wait_until_killed()
    assert f"{newest.name} is damaged (learner/rank_0.pt has another checksum" in run.said
    assert not (output / "summary.json").exists()
    Run(folder).finish()
    return output


def test_the_weights_are_those_of_an_unbroken_run(unbroken: Path, broken: Path) -> None:
    assert_same_learned_weights(unbroken / "checkpoint", broken / "checkpoint", unbroken.parent / "policy")


def test_the_metrics_are_those_of_an_unbroken_run(unbroken: Path, broken: Path) -> None:
    expected, found = metrics(unbroken), metrics(broken)
    assert [line["step"] for line in expected] == list(range(NUM_STEPS))
    assert len({line["reward/moods"] for line in expected}) > 1
    assert {"num_env_steps", "groups_without_signal", "end/max_env_steps"} <= expected[0].keys()
    assert expected == found


def test_every_id_is_accounted_for(unbroken: Path, broken: Path) -> None:
    expected, found = ids(unbroken), ids(broken)
    assert expected == found
    for line in found:
        assert line["resampled"] == []
    sampled, learned = ([id_ for line in found for id_ in line[key]] for key in ("sampled", "learned"))
    assert len(set(sampled)) == len(sampled)  # none played for two steps
    assert len(set(learned)) == len(learned)  # none learned from twice
    assert set(learned) <= set(sampled)
    is_from_surplus = [set(line["learned"]) - set(line["sampled"]) for line in found]
    assert any(is_from_surplus)  # surplus groups went through the checkpoints
    num = len(sampled)
    assert balance(unbroken) == ({"started": num, "failed": 0, "finished": num, "dropped": 0}, [])
    counts, problems = balance(broken)
    assert problems == []
    assert (counts["finished"], counts["failed"]) == (num, 0)
    assert counts["dropped"] > 0


def test_the_files_are_those_of_an_unbroken_run(unbroken: Path, broken: Path) -> None:
    shown = [load_trajectories(run / "trajectories.jsonl") for run in (unbroken, broken)]
    tokens = [[(t.task, t.reward, [turn.token_ids.tobytes() for turn in t.turns]) for t in kept] for kept in shown]
    assert tokens[0] == tokens[1]
    assert tokens[0]
    summaries = [json.loads((run / "summary.json").read_text()) | {"minutes": 0} for run in (unbroken, broken)]
    assert summaries[0] == summaries[1]


def test_one_of_two_learners_is_killed_with_lora_under_zero(tmp_path: Path) -> None:
    """The same command goes on with two steps from the state of the first two."""
    policy, unbroken, broken = make_checkpoint(tmp_path / "policy"), tmp_path / "run", tmp_path / "broken"
    # With this seed groups are left over from the second step.
    four: dict[str, Any] = config(tmp_path) | {"num_steps": 4, "save_every": 2, "seed": 3}
    four["cluster"] |= {"num_learners": 2, "learner_cpus": 0.3}
    four["learner"] |= {"lora": {"rank": 4, "alpha": 8.0}, "zero_stage": 2}
    recipe("grpo", four, tmp_path)
    assert all(line["num_rows"] for line in metrics(unbroken))  # every step learned something
    four["output"] = str(broken)
    said = Run(tmp_path, four).kill_learner(2, (broken / "state/step-000002").is_dir)
    assert "died: start the same command again, and the run resumes from its last checkpoint" in said
    (state,) = states(broken)
    assert len(list(state.rglob("rank_*.pt"))) == 2
    assert (state / "surplus.jsonl").stat().st_size
    recipe("grpo", four, tmp_path)
    assert metrics(broken) == metrics(unbroken)
    assert ids(broken) == ids(unbroken)
    assert balance(broken)[1] == []
    assert_same_learned_weights(unbroken / "checkpoint", broken / "checkpoint", policy)
