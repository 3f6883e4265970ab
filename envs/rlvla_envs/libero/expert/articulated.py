"""Drawers, doors and knobs: the joint that a goal predicate is about, and the phases that move it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rlvla_envs.libero.expert.geometry import (
    TIP_DEPTH,
    UP,
    choose_grasps,
    gripper_points,
    half_turn,
    yaw_rotation,
)
from rlvla_envs.libero.expert.motions import CLOSED, NUM_TRIES, OPEN, Label, Step, move, nearest_yaw, squeeze, transit
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


def open_(scene: Scene, predicate: list[str]) -> Iterator[Step]:
    """Opens a drawer by its handle."""
    name = predicate[1]
    joint = find_joint(scene, name)
    for _ in range(NUM_TRIES):
        yield from _pull_drawer(scene, joint, name)
        if scene.holds(predicate):
            return


def close(scene: Scene, predicate: list[str]) -> Iterator[Step]:
    """Pushes a drawer or a door shut."""
    name = predicate[1]
    joint = find_joint(scene, name)
    for _ in range(NUM_TRIES):
        if joint.is_slide:
            yield from _push_drawer(scene, joint, name)
        else:
            yield from _push_door(scene, joint, name, predicate)
        if scene.holds(predicate):
            return


def _handle(scene: Scene, joint: Joint, outward: np.ndarray) -> np.ndarray:
    """The middle of what stands out furthest of a drawer, [3]."""
    points = scene.body_points(joint.body)
    reach = points @ outward
    bar = points[reach > reach.max() - 0.014]
    return (bar.min(axis=0) + bar.max(axis=0)) / 2


def _tilted(pointing: np.ndarray, finger_axis: np.ndarray) -> np.ndarray:
    """The grip site's frame that points one way and closes along another, [3, 3]."""
    return np.column_stack([finger_axis, np.cross(pointing, finger_axis), pointing])


def _nearest_spin(rotation: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The rotation, or the one with the fingers swapped, that is closer to the present one."""
    swapped = rotation * [-1, -1, 1]
    return max((rotation, swapped), key=lambda candidate: float(np.trace(candidate.T @ present)))


def _pull_drawer(scene: Scene, joint: Joint, name: str, tilt: float = 1.3) -> Iterator[Step]:
    """Grasps the handle from the front, one finger above and one below, and pulls.

    Args:
        scene: the present state.
        joint: of the drawer.
        name: of the region.
        tilt: of the hand from pointing down, rad; a quarter turn is level. A little less keeps it off the table.
    """
    outward = joint.axis * joint.opening
    bar = _handle(scene, joint, outward)
    pointing = -np.sin(tilt) * outward - np.cos(tilt) * UP
    rotation = _nearest_spin(_tilted(pointing, np.cos(tilt) * outward - np.sin(tilt) * UP), scene.hand_rotation)
    approach = Label(phase="approach", subject=name)
    before = bar - 0.10 * pointing
    raised = np.array([*before[:2], max(scene.hand[2], before[2] + 0.08)])
    yield from move(scene, approach, raised, rotation, OPEN, tolerance=0.03, max_steps=60)
    yield from move(scene, approach, before, rotation, OPEN, tolerance=0.015, max_steps=60)
    yield from move(scene, approach, bar + 0.004 * pointing, rotation, OPEN, tolerance=0.006)
    yield from squeeze(scene, Label(phase="grasp", subject=name), CLOSED)
    start, position = scene.hand, joint_position(scene, joint)
    way = abs(joint.limit - position) + 0.02
    pull = Label(phase="pull", subject=name)
    yield from move(scene, pull, start + way * outward, rotation, CLOSED, tolerance=0.01, max_steps=60)
    yield from squeeze(scene, Label(phase="release", subject=name), OPEN)
    retreat = Label(phase="retreat", subject=name)
    yield from move(scene, retreat, scene.hand - 0.06 * pointing, rotation, OPEN, tolerance=0.02)
    yield from move(scene, retreat, scene.hand + 0.12 * UP, yaw_rotation(0.0), OPEN, tolerance=0.03)


def _push_drawer(scene: Scene, joint: Joint, name: str, tilt: float = 0.7) -> Iterator[Step]:
    """Pushes the handle with the closed fist; the hand leans back, so that it stays off the handles above."""
    outward = joint.axis * joint.opening
    bar = _handle(scene, joint, outward)
    along = np.cross(UP, outward)
    pointing = -np.sin(tilt) * outward - np.cos(tilt) * UP
    rotation = _nearest_spin(_tilted(pointing, along), scene.hand_rotation)
    approach = Label(phase="approach", subject=name)
    before = bar + 0.06 * outward
    raised = np.array([*before[:2], max(scene.hand[2], before[2] + 0.15)])
    yield from move(scene, approach, raised, rotation, CLOSED, tolerance=0.03, max_steps=60)
    yield from move(scene, approach, before, rotation, CLOSED, tolerance=0.015, max_steps=60)
    way = abs(joint_position(scene, joint)) + 0.10
    push = Label(phase="push", subject=name)
    yield from move(scene, push, before - way * outward, rotation, CLOSED, max_steps=60)
    retreat = Label(phase="retreat", subject=name)
    yield from move(scene, retreat, scene.hand + 0.05 * outward + 0.05 * UP, rotation, CLOSED, tolerance=0.03)
    yield from move(scene, retreat, scene.hand + 0.10 * UP, yaw_rotation(0.0), OPEN, tolerance=0.03)


def _push_door(scene: Scene, joint: Joint, name: str, predicate: list[str]) -> Iterator[Step]:
    """Pushes the free end of a door along its arc, the hand pointing down in front of it."""
    rotation = yaw_rotation(nearest_yaw(0.0, scene.yaw))
    approach, push = Label(phase="approach", subject=name), Label(phase="push", subject=name)
    spot, outward = _door_contact(scene, joint)
    before = spot + 0.06 * outward
    raised = np.array([*before[:2], max(scene.hand[2], before[2] + 0.12)])
    yield from move(scene, approach, raised, rotation, CLOSED, tolerance=0.03, max_steps=60)
    yield from move(scene, approach, before, rotation, CLOSED, tolerance=0.02, max_steps=60)
    for _ in range(140):
        if scene.holds(predicate):
            return
        spot, outward = _door_contact(scene, joint)
        yield from move(scene, push, spot - 0.05 * outward, rotation, CLOSED, max_steps=1)


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


def turn_on(scene: Scene, predicate: list[str]) -> Iterator[Step]:
    """Turns a knob away from its zero."""
    yield from _turn(scene, predicate, away=True)


def turn_off(scene: Scene, predicate: list[str]) -> Iterator[Step]:
    """Turns a knob back to its zero."""
    yield from _turn(scene, predicate, away=False)


def _turn(scene: Scene, predicate: list[str], *, away: bool) -> Iterator[Step]:
    """Grasps the knob's ridge from above and turns the hand."""
    name = predicate[1]
    joint = find_joint(scene, name)
    sign = float(np.sign(joint.axis[2])) * (joint.opening if away else -joint.opening)
    for _ in range(NUM_TRIES):
        knob = scene.body_points(joint.body)
        middle = (knob.min(axis=0) + knob.max(axis=0)) / 2
        yaws = np.deg2rad(np.arange(-90, 90, 15.0))
        ridge = knob[knob[:, 2] > knob[:, 2].max() - 0.02]
        others = scene.other_points(name)
        grasps = choose_grasps(
            ridge,
            others,
            joint.anchor,
            floor=middle[2] - TIP_DEPTH,
            shoulder=scene.shoulder,
            way=np.zeros(3),
            present_yaw=scene.yaw,
            yaws=yaws,
        )
        if not grasps:
            return
        position = np.array([*grasps[0].position[:2], max(grasps[0].position[2], knob[:, 2].max() - 0.012)])
        # Begin turned the other way, so that the wrist has the most of its range ahead.
        yaw = min((grasps[0].yaw + k * np.pi for k in (-1, 0, 1)), key=lambda y: abs(y + sign * 0.5))
        rotation = yaw_rotation(yaw)
        approach = Label(phase="approach", subject=name)
        empty = gripper_points() @ rotation.T
        yield from transit(scene, approach, empty, position[:2], yaw, OPEN, scene.other_points())
        yield from move(scene, approach, position, rotation, OPEN, tolerance=0.005)
        yield from squeeze(scene, Label(phase="grasp", subject=name), CLOSED)
        hold, turning = scene.hand, Label(phase="turn", subject=name)
        for _ in range(60):
            if scene.holds(predicate) or abs(half_turn(scene.yaw - yaw)) > _MAX_TURN:
                break
            ahead = yaw_rotation(scene.yaw + sign * 0.4)
            yield from move(scene, turning, hold, ahead, CLOSED, max_steps=1)
        yield from squeeze(scene, Label(phase="release", subject=name), OPEN)
        retreat = Label(phase="retreat", subject=name)
        yield from move(scene, retreat, scene.hand + 0.08 * UP, scene.hand_rotation, OPEN, tolerance=0.02)
        if scene.holds(predicate):
            return
