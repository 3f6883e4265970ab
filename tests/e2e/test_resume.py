"""A GRPO run whose driver is killed, and whose checkpoint is damaged, ends where an unbroken one ends.

Bit for bit: weights, metrics, and the ids of what was sampled and learned from. Likewise one that trains LoRA under
ZeRO-2 on two learners, one of which is killed.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from rlvla.durable.files import read_lines
from rlvla.durable.trajectories import load_trajectories
from rlvla.policies.family import load_policy
from rlvla.run.ledger import balance
from tests.e2e.run import Process, actors, recipe, running, struck, wait_until
from tests.wordless import TABLETOP, WORDLESS, make_checkpoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NUM_STEPS = 6
WITHOUT_WORDS: dict[str, Any] = {
    "episode": {"mode": "act", "tools": {}},
    "sampler": {"backend": "batched", "max_num_seqs": 1, "threads": 1},  # what is drawn together moves the last bits
    "loss": {"kl_estimator": "exact"},
}


def config(policy: Path, folder: Path) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "model": str(policy),
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
    return usual if load_policy(policy).speaks else usual | WITHOUT_WORDS


def started(run: Process, folder: Path, num: int = 3) -> list[psutil.Process]:
    """What Ray has started of ours, all of it; its own agents end by themselves, though a minute after their raylet."""
    found: list[psutil.Process] = []

    def are_there() -> bool:
        found[:] = actors(run.pid)
        return len(found) == num

    wait_until(are_there, run, folder)
    return found


def wait_until_killed(run: Process, family: Sequence[psutil.Process]) -> None:
    """SIGKILL to the driver alone; the rest must end by itself."""
    assert run.wait(240) == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "processes that outlive their driver"


def run_into(policy: Path, folder: Path, *launcher: str) -> str:
    """A launcher that kills the driver in the midst of something; what the driver said before."""
    with running("grpo", config(policy, folder), folder, launcher) as run:
        wait_until_killed(run, started(run, folder))
    return (folder / "log").read_text()


def states(output: Path) -> list[Path]:
    return sorted((output / "state").glob("step-*"))


def metrics(run: Path) -> list[dict[str, float | None]]:
    """Of each step, all but how long things took."""
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in read_lines(run / "metrics.jsonl")]


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
def unbroken(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    recipe("grpo", config(checkpoint, folder), folder)
    return folder / "run"


def kill_in_a_state(policy: Path, folder: Path, _: random.Random) -> None:
    """In the middle of writing the third state."""
    run_into(policy, folder, *struck("_state", "save_trajectories", signal.SIGKILL, count=3))
    assert any((folder / "run/state").glob("incomplete-*"))


def kill_anywhere(policy: Path, folder: Path, rng: random.Random) -> None:
    """Anywhere in a step, the third or one behind it."""
    with running("grpo", config(policy, folder), folder) as run:
        family = started(run, folder)
        wait_until(lambda: len(states(folder / "run")) > 1, run, folder)
        time.sleep(rng.uniform(0, 0.8))
        run.kill()
        wait_until_killed(run, family)


@pytest.fixture(scope="module")
def broken(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")  # shown when a test fails
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("broken")
    output = folder / "run"

    rng.choice([kill_in_a_state, kill_anywhere])(checkpoint, folder, rng)
    newest = states(output)[-1]
    file = newest / "learner/rank_0.pt"
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)

    # In the middle of writing the policy, or behind it.
    said = run_into(checkpoint, folder, *struck("finish", rng.choice(["note_trained", "write_json"]), signal.SIGKILL))
    assert f"{newest.name} is damaged (learner/rank_0.pt has another checksum" in said
    assert not (output / "summary.json").exists()
    recipe("grpo", config(checkpoint, folder), folder)
    return output


def test_the_weights_are_those_of_an_unbroken_run(unbroken: Path, broken: Path, checkpoint: Path) -> None:
    assert_same_learned_weights(unbroken / "checkpoint", broken / "checkpoint", checkpoint)


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


@pytest.mark.parametrize("family", WORDLESS)
def test_a_family_without_words_ends_where_an_unbroken_run_ends(family: str, tmp_path: Path) -> None:
    sizes = replace(TABLETOP, chunk_shape=(4, 1), views=((32, 32),), proprio_size=1)
    policy = make_checkpoint(tmp_path / "policy", family, sizes)
    runs = [tmp_path / name for name in ("unbroken", "broken")]
    for folder in runs:
        folder.mkdir()
    kill_in_a_state(policy, runs[1], random.Random())
    for folder in runs:
        recipe("grpo", config(policy, folder), folder)
    unbroken, broken = (folder / "run" for folder in runs)
    assert len(metrics(unbroken)) == NUM_STEPS
    assert metrics(broken) == metrics(unbroken)
    assert ids(broken) == ids(unbroken)
    assert balance(broken)[1] == []
    assert_same_learned_weights(unbroken / "checkpoint", broken / "checkpoint", policy)


def test_one_of_two_learners_is_killed_with_lora_under_zero(checkpoint: Path, tmp_path: Path) -> None:
    """The same command goes on with two steps from the state of the first two."""
    unbroken, broken = tmp_path / "run", tmp_path / "broken"
    # With this seed groups are left over from the second step.
    four: dict[str, Any] = config(checkpoint, tmp_path) | {"num_steps": 4, "save_every": 2, "seed": 3}
    four["cluster"] |= {"num_learners": 2, "learner_cpus": 0.3}
    four["learner"] |= {"lora": {"rank": 4, "alpha": 8.0}, "zero_stage": 2}
    recipe("grpo", four, tmp_path)
    assert all(line["num_rows"] for line in metrics(unbroken))  # every step learned something
    four["output"] = str(broken)
    with running("grpo", four, tmp_path) as run:
        started(run, tmp_path, num=4)
        wait_until((broken / "state/step-000002").is_dir, run, tmp_path)
        actors(run.pid, "LearnerActor")[0].kill()
        assert run.wait(120) != 0
    said = (tmp_path / "log").read_text()
    assert "died: start the same command again, and the run resumes from its last checkpoint" in said
    (state,) = states(broken)
    assert len(list(state.rglob("rank_*.pt"))) == 2
    assert (state / "surplus.jsonl").stat().st_size
    recipe("grpo", four, tmp_path)
    assert metrics(broken) == metrics(unbroken)
    assert ids(broken) == ids(unbroken)
    assert balance(broken)[1] == []
    assert_same_learned_weights(unbroken / "checkpoint", broken / "checkpoint", checkpoint)
