"""Two learner processes make the update that one makes, under every ZeRO stage."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.learning import ONE_BY_ONE, free_address, learn, make_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TIMING = {"tokens_per_s", "time/update_s"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def two_ranks(checkpoint, tmp_path_factory):
    output, master = tmp_path_factory.mktemp("two_ranks"), free_address()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-W", "ignore", "-m", "tests.learning"]
    ranks = [
        subprocess.Popen([*arguments, str(rank), "2", master, str(checkpoint), str(output)], cwd=ROOT, env=environment)
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return output


@pytest.fixture(scope="module")
def one_rank(checkpoint):
    return learn(checkpoint, **ONE_BY_ONE)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_learn_what_one_learns(two_ranks, one_rank, stage):
    metrics, weights = one_rank
    theirs = np.load(two_ranks / f"weights_{stage}.npz")
    assert theirs.keys() == weights.keys()
    for name, weight in weights.items():
        # Adam divides by the gradient's size, which blows rounding of the smallest gradients up: lr is 1e-3.
        np.testing.assert_allclose(theirs[name], weight, atol=2e-5, err_msg=name)
    their_metrics = np.load(two_ranks / f"metrics_{stage}.npz")
    for name in metrics.keys() - TIMING:
        assert their_metrics[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name
