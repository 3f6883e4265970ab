"""Tools: what an accepted call returns, and what the policy gets to read when a call is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlvla.policies.thinker.tools import call_tool, load_tools
from rlvla.types import Observation

TOOLS = load_tools({"zoom_in": "rlvla.policies.thinker.tools:zoom_in"})


@pytest.fixture
def observation() -> Observation:
    def zoom(image: int, box: tuple[int, int, int, int]) -> np.ndarray:
        return np.full((4, 4, 3), box[0] // 10, np.uint8)

    return Observation(
        images=(np.zeros((4, 4, 3), np.uint8),), proprio=np.zeros(4, np.float32), instruction="press", zoom=zoom
    )


def call(name: str, **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def test_an_accepted_zoom_returns_the_crop_and_its_box(observation: Observation) -> None:
    result, box = call_tool(TOOLS, observation, call("zoom_in", image=0, bbox=[100, 0, 200, 100]))
    assert box == (100, 0, 200, 100)
    assert isinstance(result, np.ndarray)
    assert (result == 10).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json", "not valid JSON"),  # the other ways are in test_markup
        (call("dance"), "no tool named dance"),
        (call("zoom_in", image=1, bbox=[0, 0, 100, 100]), "image must be 0..0"),
        (call("zoom_in", image=0), "four integers"),
    ],
)
def test_a_refused_call_says_why(observation: Observation, text: str, reason: str) -> None:
    result, box = call_tool(TOOLS, observation, text)
    assert box is None
    assert isinstance(result, str)
    assert reason in result
