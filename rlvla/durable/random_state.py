"""The global random generators of Python, NumPy and torch as JSON: a resumed run draws what an unbroken one draws.

Torch's is the CPU's, and there only where something has loaded torch, which takes seconds: what draws from it has.
"""

from __future__ import annotations

import base64
import random
import sys
from typing import Any

import numpy as np


def seed_random(seed: int) -> None:
    """Start all generators."""
    random.seed(seed)
    np.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Where all generators are: JSON-able, plain lists, numbers and text."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }
    if torch := sys.modules.get("torch"):
        state["torch"] = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    if "torch" in state:
        import torch

        torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state["torch"])), dtype=torch.uint8))
