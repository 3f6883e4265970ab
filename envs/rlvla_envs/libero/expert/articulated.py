"""Drawers, doors and knobs: the joint that a goal predicate is about, and the phases that move it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rlvla_envs.libero.expert.geometry import TIP_DEPTH, UP, choose_grasps, half_turn, yaw_rotation
from rlvla_envs.libero.expert.motions import CLOSED, OPEN, Hand, Step, nearest_yaw
from rlvla_envs.libero.expert.scene import Scene

_SLIDE = 2
"""mjtJoint."""
_MAX_TURN = 1.4
"""Of a knob in one grasp, rad: less than a quarter turn, beyond which the yaw of a hand is ambiguous."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A hinge or a slide of a fixture, at rest where it is now."""

    index: int
    body: int
    is_slide: bool
    axis: np.ndarray
    """[3], world."""
    anchor: np.ndarray
    """[3], world."""
    opening: float
    """Direction in which the position grows away from closed, +1 or -1."""
    limit: float
    """Position furthest from closed, m or rad."""


def find_joint(scene: Scene, name: str) -> Joint:
    """The joint of a region, such as a drawer's, or of a fixture."""
    site = scene.env.object_sites_dict.get(name)
    names = site.joints if site is not None else scene.env.get_object(name).joints
    index = scene.model.joint(names[-1]).id
    low, high = scene.model.jnt_range[index]
    opening = 1.0 if abs(high) > abs(low) else -1.0
    return Joint(
        index=index,
        body=int(scene.model.jnt_bodyid[index]),
        is_slide=int(scene.model.jnt_type[index]) == _SLIDE,
        axis=scene.data.xaxis[index].copy(),
        anchor=scene.data.xanchor[index].copy(),
        opening=opening,
        limit=float(high if opening > 0 else low),
    )


def joint_position(scene: Scene, joint: Joint) -> float:
    """Of the joint, m or rad."""
    return float(scene.data.qpos[scene.model.jnt_qposadr[joint.index]])


def shut(hand: Hand, goal: list[str]) -> Iterator[Step]:
    """Pushes a drawer or a door shut."""
    joint = find_joint(hand.scene, hand.subject)
    yield from _push_drawer(hand, joint) if joint.is_slide else _push_door(hand, joint, goal)


def _handle(scene: Scene, joint: Joint, outward: np.ndarray) -> np.ndarray:
    """The middle of what stands out furthest of a drawer, [3]."""
    points = scene.body_points(joint.body)
    reach = points @ outward
    bar = points[reach > reach.max() - 0.014]
    return (bar.min(axis=0) + bar.max(axis=0)) / 2


def _facing(pointing: np.ndarray, finger_axis: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The grip site's frame that points one way and closes along another, [3, 3]: of two the closer to the present."""
    rotation = np.column_stack([finger_axis, np.cross(pointing, finger_axis), pointing])
    return max((rotation, rotation * [-1, -1, 1]), key=lambda candidate: float(np.trace(candidate.T @ present)))


def pull_open(hand: Hand, goal: list[str]) -> Iterator[Step]:
    """Grasps the handle of a drawer from the front, one finger above and one below, and pulls."""
    scene, joint = hand.scene, find_joint(hand.scene, hand.subject)
    outward = joint.axis * joint.opening
    bar = _handle(scene, joint, outward)
    tilt = 1.3  # from pointing down, rad: a little less than level keeps the hand off the table
    pointing = -np.sin(tilt) * outward - np.cos(tilt) * UP
    rotation = _facing(pointing, np.cos(tilt) * outward - np.sin(tilt) * UP, scene.hand_rotation)
    yield from hand.approach(bar - 0.10 * pointing, rotation, OPEN, rise=0.08)
    yield from hand.move("approach", bar + 0.004 * pointing, rotation, OPEN, tolerance=0.006)
    yield from hand.squeeze("grasp", CLOSED)
    way = abs(joint.limit - joint_position(scene, joint)) + 0.02
    yield from hand.move("pull", scene.hand + way * outward, rotation, CLOSED, tolerance=0.01, max_steps=60)
    yield from hand.let_go(-0.06 * pointing, rotation)
    yield from hand.move("retreat", scene.hand + 0.12 * UP, yaw_rotation(0.0), OPEN, tolerance=0.03)


def _push_drawer(hand: Hand, joint: Joint) -> Iterator[Step]:
    """Pushes the handle with the closed fist."""
    scene, outward = hand.scene, joint.axis * joint.opening
    bar = _handle(scene, joint, outward)
    tilt = 0.7  # the hand leans back, so that it stays off the handles above
    pointing = -np.sin(tilt) * outward - np.cos(tilt) * UP
    rotation = _facing(pointing, np.cross(UP, outward), scene.hand_rotation)
    before = bar + 0.06 * outward
    yield from hand.approach(before, rotation, CLOSED, rise=0.15)
    way = abs(joint_position(scene, joint)) + 0.10
    yield from hand.move("push", before - way * outward, rotation, CLOSED, max_steps=60)
    yield from hand.move("retreat", scene.hand + 0.05 * outward + 0.05 * UP, rotation, CLOSED, tolerance=0.03)
    yield from hand.move("retreat", scene.hand + 0.10 * UP, yaw_rotation(0.0), OPEN, tolerance=0.03)


def _push_door(hand: Hand, joint: Joint, goal: list[str]) -> Iterator[Step]:
    """Pushes the free end of a door along its arc, the hand pointing down in front of it."""
    rotation = yaw_rotation(nearest_yaw(0.0, hand.scene.yaw))
    spot, outward = _door_contact(hand.scene, joint)
    yield from hand.approach(spot + 0.06 * outward, rotation, CLOSED, rise=0.12, tolerance=0.02)
    for _ in range(140):
        if hand.scene.holds(goal):
            return
        spot, outward = _door_contact(hand.scene, joint)
        yield from hand.move("push", spot - 0.05 * outward, rotation, CLOSED, max_steps=1)


def _door_contact(scene: Scene, joint: Joint) -> tuple[np.ndarray, np.ndarray]:
    """Where to push a door, [3], and the direction in which that point opens, [3]."""
    arms = scene.body_points(joint.body) - joint.anchor
    middle = arms.mean(axis=0) * [1, 1, 0]
    radial = middle / np.linalg.norm(middle)
    outward = np.cross(joint.axis * joint.opening, radial)
    reach = arms @ radial
    end = arms[np.abs(reach - 0.9 * reach.max()) < 0.02]
    height = arms[:, 2].max() - 0.02
    spot = joint.anchor + 0.9 * reach.max() * radial + (end @ outward).max() * outward
    return np.array([*spot[:2], joint.anchor[2] + height]), outward


def turn(hand: Hand, goal: list[str], direction: float) -> Iterator[Step]:
    """Grasps the knob's ridge from above and turns the hand; nothing where the ridge cannot be grasped.

    Args:
        hand: not yet there.
        goal: ends the turn.
        direction: 1 away from zero, -1 back.
    """
    scene, joint = hand.scene, find_joint(hand.scene, hand.subject)
    sign = float(np.sign(joint.axis[2])) * joint.opening * direction
    knob = scene.body_points(joint.body)
    top = knob[:, 2].max()
    middle = (knob.min(axis=0) + knob.max(axis=0)) / 2
    grasps = choose_grasps(
        knob[knob[:, 2] > top - 0.02],
        scene.other_points(hand.subject),
        joint.anchor,
        floor=middle[2] - TIP_DEPTH,
        shoulder=scene.shoulder,
        way=np.zeros(3),
        present_yaw=scene.yaw,
        yaws=np.deg2rad(np.arange(-90, 90, 15.0)),
    )
    if not grasps:
        return
    position = np.array([*grasps[0].position[:2], max(grasps[0].position[2], top - 0.012)])
    # Begin turned the other way, so that the wrist has the most of its range ahead.
    yaw = min((grasps[0].yaw + k * np.pi for k in (-1, 0, 1)), key=lambda y: abs(y + sign * 0.5))
    yield from hand.grasp(position, yaw)
    hold = scene.hand
    for _ in range(60):
        if scene.holds(goal) or abs(half_turn(scene.yaw - yaw)) > _MAX_TURN:
            break
        yield from hand.move("turn", hold, yaw_rotation(scene.yaw + sign * 0.4), CLOSED, max_steps=1)
    yield from hand.let_go(0.08 * UP)
