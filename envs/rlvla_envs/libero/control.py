"""Two ways to say where the hand goes: by how much from where it is, as robosuite's controller takes it, or where to.

robosuite 1.4's operational space controller sets its goal at the beginning of an env step, from the pose at that time:
`p + 0.05 u` and `R(0.5 w) R` (controllers/osc.py, `set_goal`). Pure numpy, world frame.
"""

from __future__ import annotations

import numpy as np

from rlvla_envs.libero.expert.geometry import rotation_error
from rlvla_envs.libero.expert.motions import MAX_MOVE, MAX_TURN


def goal_of(delta: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """The pose that a relative action sends the hand to.

    Args:
        delta: [7] in [-1, 1], translation (1 is 5 cm), rotation vector (1 is 0.5 rad), gripper.
        position: [3], the hand's at the beginning of the env step, m.
        rotation: [3, 3], likewise.

    Returns:
        float64 [7]: position (m), rotation vector (rad) as `rotation_vector` has it, gripper.
    """
    delta = np.asarray(delta, np.float64)
    turned = rotation_matrix(MAX_TURN * delta[3:6]) @ rotation
    return np.concatenate([position + MAX_MOVE * delta[:3], rotation_vector(turned), delta[6:]])


def delta_to(goal: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """The relative action that sends the hand to a pose, or as far on the way as an env step may: `goal_of`'s inverse.

    Args:
        goal: [7], see `goal_of`.
        position: [3], see `goal_of`.
        rotation: [3, 3], see `goal_of`.

    Returns:
        float64 [7], each in [-1, 1].
    """
    move = (goal[:3] - position) / MAX_MOVE
    turn = rotation_error(rotation, rotation_matrix(goal[3:6])) / MAX_TURN
    return np.clip(np.concatenate([move, turn, goal[6:]]), -1, 1)


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """[3, 3] of a rotation vector [3], rad: any length, as whole turns change nothing (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = np.asarray(vector, np.float64) / max(angle, 1e-300)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """[3] of a rotation [3, 3], rad: of the two below a whole turn the one with x + y >= 0.

    A hand that points down is turned by about half a turn around a level axis. There the shorter of the two jumps from
    one sign to the other, while this one goes on: it jumps only where the hand is turned by half a turn from `yaw` 0.
    """
    w, xyz = _quaternion(rotation)
    if xyz[0] + xyz[1] < 0:
        w, xyz = -w, -xyz
    sine = float(np.linalg.norm(xyz))
    return xyz * (2 * np.arctan2(sine, w) / sine) if sine > 1e-12 else np.zeros(3)


def _quaternion(rotation: np.ndarray) -> tuple[float, np.ndarray]:
    """The w and the [3] of a rotation, of either sign, from the largest component: nothing is divided by little."""
    r = np.asarray(rotation, np.float64)
    trace = float(np.trace(r))
    # 4 times the squares of w, x, y, z; 4 w x, 4 w y ... are off the diagonal.
    squares = np.array([1 + trace, *(1 + 2 * np.diag(r) - trace)])
    skew, both = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]), r + r.T
    largest = int(np.argmax(squares))
    if largest == 0:
        found = np.array([squares[0], *skew])
    else:
        i = largest - 1
        found = np.array([skew[i], *both[i]])
        found[largest] = squares[largest]
    found /= 2 * np.sqrt(squares[largest])
    return float(found[0]), found[1:]
