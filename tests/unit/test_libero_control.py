"""Poses and deltas of LIBERO's hand, there and back; numpy alone."""

from __future__ import annotations

import numpy as np
import pytest

from rlvla_envs.libero.control import delta_to, goal_of, rotation_matrix, rotation_vector
from rlvla_envs.libero.expert.geometry import rotation_error, yaw_rotation

HERE = np.array([0.1, -0.2, 0.9])


def tilted(rng: np.random.Generator) -> np.ndarray:
    """A hand that points roughly down."""
    return rotation_matrix(rng.normal(0, 0.2, 3)) @ yaw_rotation(rng.uniform(-2, 2))


def test_a_delta_leads_to_a_goal_and_the_goal_back_to_the_delta() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rotation, delta = tilted(rng), rng.uniform(-1, 1, 7)
        goal = goal_of(delta, HERE, rotation)
        assert goal[:3] == pytest.approx(HERE + 0.05 * delta[:3], abs=1e-15)
        assert rotation_error(rotation, rotation_matrix(goal[3:6])) == pytest.approx(0.5 * delta[3:6], abs=1e-12)
        assert delta_to(goal, HERE, rotation) == pytest.approx(delta, abs=1e-12)
        assert delta_to(goal.astype(np.float32), HERE, rotation) == pytest.approx(delta, abs=1e-5)


def test_a_goal_far_away_is_a_delta_as_far_as_they_go() -> None:
    rotation = yaw_rotation(0.0)
    goal = goal_of(np.array([0.5, 0, 0, 0, 0, 0, 1]), HERE, rotation) + np.array([1, -1, 0, 0, 0, 0, 3])
    assert delta_to(goal, HERE, rotation).tolist() == [1, -1, 0, 0, 0, 0, 1]
    turned = np.array([*HERE, *rotation_vector(yaw_rotation(1.5)), -1])
    assert delta_to(turned, HERE, rotation) == pytest.approx([0, 0, 0, 0, 0, 1, -1], abs=1e-9)


def test_no_turn_is_no_turn_at_all_also_in_float32() -> None:
    """The controller keeps its goal of before where a rotation is all zeros."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        rotation = tilted(rng)
        goal = goal_of(np.zeros(7), HERE, rotation).astype(np.float32)
        assert delta_to(goal, HERE, rotation)[3:6].tolist() == [0, 0, 0]


def test_a_rotation_vector_is_that_rotation_whatever_it_is() -> None:
    rng = np.random.default_rng(2)
    vectors = [*rng.normal(0, 2, (200, 3)), np.zeros(3), [np.pi, 0, 0], [0, np.pi, 0], [0, 0, np.pi], [1e-7, 0, 0]]
    for vector in vectors:
        rotation = rotation_matrix(np.array(vector))
        assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
        found = rotation_vector(rotation)
        assert rotation_matrix(found) == pytest.approx(rotation, abs=1e-9)
        assert np.linalg.norm(found) <= 2 * np.pi


def test_around_a_hand_that_points_down_rotation_vectors_do_not_jump() -> None:
    """Their length is about half a turn there, where the shorter one of two changes its sign."""
    swing = np.array([np.sin(np.linspace(0, 20, 500)), np.cos(np.linspace(0, 13, 500)), np.sin(np.linspace(0, 7, 500))])
    vectors = np.array([rotation_vector(rotation_matrix(0.3 * tilt) @ yaw_rotation(2.5 * tilt[2])) for tilt in swing.T])
    assert np.linalg.norm(np.diff(vectors, axis=0), axis=1).max() < 0.15
    assert np.ptp(np.linalg.norm(vectors, axis=1)) > 0.1, "some are longer than half a turn, some are shorter"
    assert rotation_vector(yaw_rotation(0.0)) == pytest.approx(np.pi * np.array([1, 1, 0]) / 2**0.5)
