"""The global random generators of Python and NumPy as JSON, so that a resumed run draws what an unbroken one draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def seed_random(seed: int) -> None:
    """Start both generators."""
    random.seed(seed)
    np.random.seed(seed)


def random_state() -> dict[str, Any]:
    """Where both generators are: JSON-able, plain lists and numbers."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
