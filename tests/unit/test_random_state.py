from __future__ import annotations

import json
import random

import numpy as np

from rlvla.random_state import random_state, seed_random, set_random_state


def draw() -> list[float]:
    return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), float(np.random.randint(10**6))]


def test_what_is_drawn_after_a_resume_is_what_would_have_been_drawn() -> None:
    seed_random(3)
    draw()  # an odd number of normals: each generator holds one back
    state = json.loads(json.dumps(random_state()))
    expected = [draw(), draw()]
    seed_random(4)
    assert draw() != expected[0]
    set_random_state(state)
    assert [draw(), draw()] == expected


def test_a_seed_decides_all() -> None:
    seed_random(3)
    first = draw()
    seed_random(3)
    assert draw() == first
