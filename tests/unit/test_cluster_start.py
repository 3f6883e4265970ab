"""Addresses that are wrong or taken, and a Ray that runs already."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlvla.cluster.cluster import start_ray
from rlvla.config import ClusterConfig, SamplerConfig
from rlvla.samplers.vllm.sampler import VLLMSampler
from tests.e2e.run import ROOT, environment, free_address
from tests.learning import make_learner

START = (
    "import ray; from rlvla.cluster.cluster import *; start_ray(ClusterConfig()); "
    "print(ray.get_runtime_context().gcs_address)"
)


def test_a_cluster_that_does_not_answer_is_named_at_once() -> None:
    address = free_address()
    with pytest.raises(ConnectionError, match=rf"cluster.address is '{address}', where nothing answers"):
        start_ray(ClusterConfig(address=address))


@pytest.mark.timeout(120)
def test_a_run_starts_a_ray_of_its_own_beside_one_that_runs() -> None:
    command = [sys.executable, "-c", f"{START}; input()"]
    with subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        theirs = first.stdout.readline()
        second = subprocess.run(command, env=environment(), cwd=ROOT, input="\n", capture_output=True, text=True)
        first.communicate("\n")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", theirs.strip())
    assert re.fullmatch(r"127\.0\.0\.1:\d+", second.stdout.strip()), second.stderr[-2000:]
    assert theirs != second.stdout


def test_a_port_that_is_taken_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # a test before may have left a group
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"learner rank 0 cannot listen on {address}.*start the run again"):
            make_learner(checkpoint, master=address)


def test_a_kv_cache_that_is_too_small_is_told_with_the_number_that_it_takes(checkpoint: Path) -> None:
    config = SamplerConfig(kv_cache_mb=1, max_num_seqs=2)
    # 1 layer, keys and values of 32 float32 each: 256 bytes a token, in blocks of 32, and one block that vLLM keeps.
    with pytest.raises(ValueError, match=r"sampler.kv_cache_mb is 1: .*4065 tokens.*alone needs 2"):
        VLLMSampler(checkpoint, config, max_images=1, max_model_len=4065)
    VLLMSampler(checkpoint, config, max_images=1, max_model_len=4064).close()  # as vLLM has it
