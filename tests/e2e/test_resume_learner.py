"""Two steps, a new process, and two steps more give bit for bit what four steps give."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.run import ROOT, environment
from tests.learning import free_address, make_checkpoint
from tests.resume_worker import VARIANTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(phase: str, world: int, checkpoint: Path, output: Path) -> None:
    """All variants in `world` processes."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.resume_worker", phase]
    rest = [str(world), free_address(), str(checkpoint), str(output)]
    ranks = [subprocess.Popen([*command, str(rank), *rest], cwd=ROOT, env=environment()) for rank in range(world)]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.fixture(scope="module", params=[1, 2], ids=["one-learner", "two-learners"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both phases of every variant; each phase has processes of its own, so that nothing but the files goes over."""
    folder = tmp_path_factory.mktemp("resume")
    checkpoint = make_checkpoint(folder / "checkpoint")
    for phase in ("unbroken", "resumed"):
        run(phase, request.param, checkpoint, folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_and_two_steps_equal_four_bit_for_bit(output: Path, variant: str) -> None:
    unbroken, resumed = (json.loads((output / f"{p}-{variant}.json").read_text()) for p in ("unbroken", "resumed"))
    assert [line["step"] for line in unbroken] == [2, 3]
    assert unbroken == resumed
    assert unbroken[0]["grad_norm"] > 0
    weights, again = (np.load(output / f"{phase}-{variant}.npz") for phase in ("unbroken", "resumed"))
    assert weights.keys() == again.keys()
    for name in weights:
        assert weights[name].tobytes() == again[name].tobytes(), name
