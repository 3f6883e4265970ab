"""The elementary motions of LIBERO's experts: generators that yield one step at a time and read the state in between.

Each ends when its pose is reached or its patience is spent. `yield from` strings them together to skills
(`objects`, `articulated`) that read like the plans they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rlvla_envs.libero.expert.geometry import HeightMap, half_turn, rotation_error, yaw_rotation
from rlvla_envs.libero.expert.scene import Scene

OPEN, CLOSED = -1.0, 1.0
MAX_MOVE, MAX_TURN = 0.05, 0.5
"""What an action of 1 means, m and rad: robosuite 1.4.0, controllers/config/osc_pose.json."""
GAIN = 1.5
"""Of the proportional control; 2 starts to overshoot."""
CLEARANCE = 0.025
"""Between what the hand carries and what it passes over, m."""
NUM_TRIES = 4
"""Attempts at one goal; an official episode leaves no time for more."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What the steps of a phase are called."""

    phase: str
    """approach, grasp, lift, carry, lower, release, retreat, pull, push, turn, wait."""
    subject: str
    """The object, region or fixture that the phase is about."""
    target: str = ""
    """Where the subject goes, if anywhere."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One env step of the expert."""

    action: np.ndarray
    """What to execute, float32 [7]: position and rotation deltas in [-1, 1], gripper -1 open to +1 closed."""
    intended: np.ndarray
    """The same before noise was added: what to learn."""
    label: Label


def towards(scene: Scene, label: Label, position: np.ndarray, rotation: np.ndarray, gripper: float) -> Step:
    """The step that moves the hand towards a pose."""
    move = (position - scene.hand) * (GAIN / MAX_MOVE)
    turn = rotation_error(scene.hand_rotation, rotation) * (GAIN / MAX_TURN)
    # Scaled as a whole, so that the hand goes straight even where the limit binds.
    move, turn = (v / max(1.0, float(np.abs(v).max())) for v in (move, turn))
    action = np.array([*move, *turn, gripper], np.float32)
    return Step(action=action, intended=action, label=label)


def move(
    scene: Scene,
    label: Label,
    position: np.ndarray,
    rotation: np.ndarray,
    gripper: float,
    *,
    tolerance: float = 0.008,
    max_steps: int = 40,
) -> Iterator[Step]:
    """Straight to a pose. Ends within `tolerance` (m, and 0.06 rad), or where the hand no longer advances."""
    stalled, previous = 0, np.inf
    for _ in range(max_steps):
        distance = float(np.linalg.norm(position - scene.hand))
        turn = float(np.linalg.norm(rotation_error(scene.hand_rotation, rotation)))
        if distance < tolerance and turn < 0.06:
            return
        stalled = stalled + 1 if distance + 0.1 * turn > previous - 0.0005 else 0
        previous = distance + 0.1 * turn
        if stalled >= 6:
            return
        yield towards(scene, label, position, rotation, gripper)


def squeeze(scene: Scene, label: Label, gripper: float, *, min_steps: int = 4, max_steps: int = 14) -> Iterator[Step]:
    """Open or close where the hand is, until the fingers rest."""
    position, rotation = scene.hand, scene.hand_rotation
    previous = np.inf
    for step in range(max_steps):
        if step >= min_steps and abs(scene.opening - previous) < 0.0003:
            return
        previous = scene.opening
        yield towards(scene, label, position, rotation, gripper)


def transit(
    scene: Scene, label: Label, held: np.ndarray, spot: np.ndarray, yaw: float, gripper: float, obstacles: np.ndarray
) -> Iterator[Step]:
    """Over obstacles [M, 3] to above a spot [2]: up as far as needed, across, no further down than is safe.

    Args:
        scene: the present state.
        label: of the steps.
        held: [N, 3], the hand and what it holds, relative to the grip site.
        spot: where to.
        yaw: of the hand at the end.
        gripper: command.
        obstacles: what to stay clear of.
    """
    heights = HeightMap(obstacles, scene.floor, scene.hand)
    path = scene.hand[:2] + np.linspace(0, 1, 12)[:, None] * (spot - scene.hand[:2])
    clear = float(heights.contact(held, path).max()) + CLEARANCE
    rotation = yaw_rotation(yaw)
    stalled, previous, best, since_best = 0, -np.inf, np.inf, 0
    for _ in range(90):
        hand = scene.hand
        # Far from the shoulder the arm cannot rise as high: then it has to do without the clearance.
        is_rising = hand[2] > previous + 0.001
        stalled, previous = 0 if is_rising else stalled + 1, hand[2]
        distance = float(np.linalg.norm(spot - hand[:2]))
        turn = float(np.linalg.norm(rotation_error(scene.hand_rotation, rotation)))
        since_best = 0 if distance + 0.1 * turn < best - 0.002 or is_rising else since_best + 1
        best = min(best, distance + 0.1 * turn)
        if (distance < 0.012 and turn < 0.1) or since_best > 12:
            return
        is_high = hand[2] > clear - CLEARANCE / 2 or stalled > 5
        # From high above, come down only on the way.
        height = max(clear, hand[2] - distance) if is_high else clear
        goal = np.array([*(spot if is_high else hand[:2]), height])
        yield towards(scene, label, goal, rotation, gripper)


def nearest_yaw(yaw: float, present: float) -> float:
    """The equivalent yaw that takes the least turn."""
    return present + half_turn(yaw - present)
