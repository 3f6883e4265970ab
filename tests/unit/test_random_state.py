from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import torch

from rlvla.durable.random_state import random_state, seed_random, set_random_state


def draw() -> list[float]:
    numbers = [random.random(), random.gauss(), np.random.rand(), np.random.randn(), float(np.random.randint(10**6))]
    return [*numbers, float(torch.rand(())), float(torch.randn(()))]


def test_a_seed_decides_all_and_a_resume_draws_what_would_have_been_drawn() -> None:
    seed_random(3)
    first = draw()  # an odd number of normals: each generator holds one back
    state = json.loads(json.dumps(random_state()))
    expected = [draw(), draw()]
    seed_random(4)
    assert draw() != expected[0]
    set_random_state(state)
    assert [draw(), draw()] == expected
    seed_random(3)
    assert draw() == first


def test_a_driver_without_torch_does_not_load_it() -> None:
    source = (
        "import sys; from rlvla.durable.random_state import *; seed_random(3); set_random_state(random_state()); "
        "print('torch' in sys.modules, *random_state())"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "python", "numpy"]
