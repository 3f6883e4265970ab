"""A run over hosts of their own: the policy lies on the head alone, a link is bad, a host vanishes, another joins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvla.durable.files import read_lines
from rlvla.run.ledger import balance
from tests.e2e.hosts import Hosts, lack_of_hosts
from tests.e2e.run import ROOT, wait_until
from tests.learning import make_checkpoint

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(lack_of_hosts()), reason=lack_of_hosts()),
]

NUM_STEPS = 20
LEARNER_CPUS, CPUS = 17, 8
"""So that only the head has room for the learner, and every other host for a sampler and a rollout actor."""


def config(hosts: Hosts) -> dict[str, Any]:
    """Paths are the head's."""
    return {
        "model": "/tmp/policy",
        "output": "/tmp/run",
        "env": {"id": "lab/Bandit-v0", "imports": ["bandit"]},
        "episode": {"mode": "act", "max_turn_tokens": 128},
        "sampler": {"backend": "transformers", "threads": 1},
        "cluster": {"address": hosts.address, "num_samplers": 2, "num_rollout_actors": 2, "envs_per_actor": 2}
        | {"threads": 1, "sampler_cpus": CPUS, "rollout_cpus": CPUS, "learner_cpus": LEARNER_CPUS},
        "reward": [{"fn": f"{Path(__file__).parent}/rewards.py:odd_tokens"}],
        "loss": {"kl_coef": 0.0},
        "learner": {"lr": 1e-3, "micro_batch_rows": 8},
        "num_steps": NUM_STEPS,
        "groups_per_step": 2,
        "group_size": 2,
    }


def test_a_run_outlives_a_bad_link_and_a_host_that_vanishes(tmp_path: Path) -> None:
    with Hosts(tmp_path, num=4) as hosts:
        hosts.throttle(2)
        for host in range(3):
            hosts.start_ray(host, 2 * CPUS if host else LEARNER_CPUS)
        make_checkpoint(hosts.tmp(0) / "policy")
        (hosts.tmp(0) / "grpo.yaml").write_text(yaml.safe_dump(config(hosts)))
        run = hosts.tmp(0) / "run"
        command = (sys.executable, ROOT / "recipes/grpo.py", "--config", "/tmp/grpo.yaml")
        process = hosts.popen(0, *command, log=tmp_path / "log")
        wait_until(lambda: num_steps(run) >= 3, process, tmp_path)
        assert all(len(list((hosts.tmp(host) / ".cache/rlvla/policies").iterdir())) == 2 for host in (1, 2))  # + lock
        assert hosts.num_lost(2) > 0
        hosts.cut(2)
        hosts.start_ray(3, 2 * CPUS)
        assert process.wait(400) == 0, (tmp_path / "log").read_text()[-3000:]
        assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(NUM_STEPS))
        counts, problems = balance(run)
        assert problems == []
        assert counts == {"started": 4 * NUM_STEPS, "failed": 0, "finished": 4 * NUM_STEPS, "dropped": 0}
        assert (hosts.tmp(3) / ".cache/rlvla/policies").is_dir()  # where what was lost is played again


def num_steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(read_lines(file)) if file.is_file() else 0
