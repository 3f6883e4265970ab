"""Two learner processes make the update that one makes, under every ZeRO stage."""

from pathlib import Path

import numpy as np
import pytest

from rlvla.policies.family import FAMILIES
from tests.e2e.run import ranks
from tests.learning import ONE_BY_ONE, assert_same_weights, learn

pytestmark = pytest.mark.long

TIMING = {"tokens_per_s", "time/update_s", "time/save_s"}


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest, policies: dict[str, Path]) -> Path:
    return policies[request.param]


@pytest.fixture(scope="module")
def two_ranks(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("two_ranks")
    ranks("tests.learning", 2, policy, output)
    return output


@pytest.fixture(scope="module")
def one_rank(policy):
    return learn(policy, **ONE_BY_ONE)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_learn_what_one_learns(two_ranks, one_rank, stage):
    metrics, weights = one_rank
    assert_same_weights(dict(np.load(two_ranks / f"weights_{stage}.npz")), weights)
    their_metrics = np.load(two_ranks / f"metrics_{stage}.npz")
    for name in metrics.keys() - TIMING:
        assert their_metrics[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name
