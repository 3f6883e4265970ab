"""Types that keep what they are given."""

from __future__ import annotations

import numpy as np

from rlvla.types import Decision


def test_a_decision_keeps_what_was_seen_where_the_env_draws_into_one_buffer() -> None:
    images, proprio, actions = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.float32), np.zeros((2, 3), np.float32)
    decision = Decision(
        instruction="press",
        images=tuple(images),
        proprio=proprio,
        actions=actions,
        zoom=lambda image, box: images[image],
    )
    for array in (images, proprio, actions):
        array += 1
    assert [int(array.max()) for array in (*decision.images, decision.proprio, decision.actions)] == [0, 0, 0, 0]
