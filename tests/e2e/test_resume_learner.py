"""Two steps, new processes, and two steps more give bit for bit what four steps give.

On two ranks; on one `tests/unit/test_learner.py` shows it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.run import ranks
from tests.resume_worker import VARIANTS

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def output(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both phases of every variant; each phase has processes of its own, so that nothing but the files goes over."""
    folder = tmp_path_factory.mktemp("resume")
    for phase in ("unbroken", "resumed"):
        ranks("tests.resume_worker", 2, phase, checkpoint, folder)
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
