"""A step of a real GRPO run where all goes wrong: an env that always fails, a sampler and a rollout actor that die."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvla.durable.files import read_lines
from rlvla.run.ledger import balance
from tests import parallel_policies
from tests.e2e.run import actors, kill, running, wait_until
from tests.unit.faulty_env import let_go, plant

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_what_fails_is_counted_and_refilled_and_what_dies_is_begun_again(tmp_path: Path) -> None:
    """A group of two, in one env: the first member fails twice in its second chunk, and a third takes its place."""
    faults, output = tmp_path / "faults", tmp_path / "run"
    faults.mkdir()
    plant(faults, "step_chunk", "go", "raise", "go", "raise")
    plant(faults, "reset", "go", "go", "wait", "go", "wait")  # of the second member, and of the third
    config = {
        "model": str(parallel_policies.save("idefics3", tmp_path)),  # its actions are never malformed
        "output": str(output),
        "env": {"id": "lab/Faulty-v0", "imports": ["tests.unit.faulty_env"], "kwargs": {"folder": str(faults)}}
        | {"max_attempts": 2},
        "episode": {"mode": "act", "max_turn_tokens": 128},
        "cluster": {"envs_per_actor": 1, "threads": 1},
        "sampler": {"backend": "transformers"},
        "reward": [{"fn": f"{Path(__file__).parent}/rewards.py:odd_tokens"}],
        "num_steps": 1,
        "groups_per_step": 1,
        "group_size": 2,
    }
    with running("grpo", config, tmp_path) as process:
        for actor in ("SamplerActor", "RolloutActor"):
            wait_until((faults / "reset.at").exists, process, tmp_path)
            (victim,) = actors(process.pid, actor)
            kill(victim)
            let_go(faults, "reset")
        assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()[-3000:]
    (line,) = [json.loads(line) for line in (output / "ids.jsonl").read_text().splitlines()]
    assert len({*line["sampled"]}) == 3
    # Under the sampler that died, and in the actor that did: twice, where Ray was asked too early for its successor.
    assert list(dict.fromkeys(line["resampled"])) == line["sampled"][1:]
    assert line["failed"] == 1
    assert balance(output) == ({"started": 3, "failed": 1, "finished": 2, "dropped": 0}, [])
    started = [json.loads(line)["ids"] for line in (output / "started.jsonl").read_text().splitlines()]
    assert started == [line["sampled"][:2], line["sampled"][2:]]
    (metrics,) = read_lines(output / "metrics.jsonl")
    counted = {name: metrics[name] for name in ("num_trajectories", "num_finished", "env_errors", "env_crashes")}
    assert counted == {"num_trajectories": 3, "num_finished": 2, "env_errors": 1, "env_crashes": 2}
    assert (metrics["success"], metrics["end/env_error"]) == (1.0, pytest.approx(1 / 3))
    assert metrics["num_rows"] == 4  # two turns of each that finished; none of the one that failed, which had one
