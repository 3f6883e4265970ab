"""Moving objects: where to grasp and where to put down, by the shapes of things; then pick, place, and drag."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from rlvla_envs.libero.expert.geometry import (
    EASY_REACH,
    FINGER_OUTER,
    POINTING_DOWN,
    TIP_DEPTH,
    UP,
    Grasp,
    HeightMap,
    choose_grasps,
    gripper_points,
    reach,
    yaw_rotation,
)
from rlvla_envs.libero.expert.motions import (
    CLOSED,
    NUM_TRIES,
    OPEN,
    Label,
    Step,
    move,
    nearest_yaw,
    squeeze,
    towards,
    transit,
)
from rlvla_envs.libero.expert.scene import Scene

LOST = 0.04
"""An object this much further from the hand than before has fallen, m; turning in the hand moves it less."""
PRESSURE = 0.01
"""How far below a surface the hand aims to press on it, m."""


def relative_to_hand(scene: Scene, name: str | None) -> np.ndarray:
    """The gripper as it is now and, with a name, the object it holds; [N, 3], world axes, from the grip site."""
    gripper = gripper_points(scene.opening) @ scene.hand_rotation.T
    return gripper if name is None else np.concatenate([gripper, scene.points(name) - scene.hand])


def find_grasp(scene: Scene, name: str, target: str, tried: list[np.ndarray]) -> Grasp | None:
    """The cheapest grasp of an object that is not close to one that failed.

    Args:
        scene: the present state.
        name: of the object.
        target: where it goes.
        tried: positions relative to the object, [3] each.
    """
    shape = scene.points(name)
    spread = shape[:, :2] - shape[:, :2].mean(axis=0)
    main_axis = np.linalg.svd(spread, full_matrices=False)[2][0]
    aligned = np.arctan2(main_axis[1], main_axis[0])  # fingers close across the longest side
    yaws = np.concatenate([[aligned, aligned + np.pi / 2], np.deg2rad(np.arange(-90, 90, 22.5))])
    grasps = choose_grasps(
        shape,
        scene.other_points(name),
        scene.center_of_mass(name),
        floor=scene.floor,
        shoulder=scene.shoulder,
        way=scene.position(target) - scene.position(name),
        present_yaw=scene.yaw,
        yaws=yaws,
    )
    offsets = [grasp.position - scene.position(name) for grasp in grasps]
    is_fresh = [all(np.linalg.norm(offset - other) > 0.02 for other in tried) for offset in offsets]
    return next(itertools.compress(grasps, is_fresh), next(iter(grasps), None))


def reach_grasp(scene: Scene, name: str, grasp: Grasp) -> Iterator[Step]:
    """From anywhere to a grasp, and close the gripper."""
    yaw = nearest_yaw(grasp.yaw, scene.yaw)
    rotation = yaw_rotation(yaw)
    approach, closing = Label(phase="approach", subject=name), Label(phase="grasp", subject=name)
    empty = gripper_points() @ rotation.T
    yield from transit(scene, approach, empty, grasp.position[:2], yaw, OPEN, scene.other_points())
    yield from move(scene, approach, grasp.position, rotation, OPEN, tolerance=0.005)
    yield from squeeze(scene, closing, CLOSED)


def pick(scene: Scene, name: str, target: str, tried: list[np.ndarray]) -> Generator[Step, Any, bool]:
    """Grasp an object and lift it a little; whether it is in the hand. Notes the grasp in `tried`."""
    grasp = find_grasp(scene, name, target, tried)
    if grasp is None:
        return False
    tried.append(grasp.position - scene.position(name))
    yield from reach_grasp(scene, name, grasp)
    start = scene.position(name)[2]
    lifted = scene.hand + 0.05 * UP
    upright = yaw_rotation(scene.yaw)
    yield from move(scene, Label(phase="lift", subject=name), lifted, upright, CLOSED, tolerance=0.015)
    return bool(scene.position(name)[2] > start + 0.015)


def find_place(scene: Scene, name: str, target: str) -> tuple[np.ndarray, float]:
    """Where the hand, holding an object, comes down on a target: position [3] at first touch, and yaw.

    Spots and turns are judged by where the object's root body would end, with LIBERO's own check of the region.
    """
    held, offset = relative_to_hand(scene, name), scene.position(name) - scene.hand
    heights = HeightMap(scene.other_points(name), scene.floor, scene.position(target))
    center = scene.position(target)
    options = []
    for turn in np.deg2rad([0, 45, -45, 90, -90]):
        spin = yaw_rotation(turn) @ POINTING_DOWN.T
        moves = _offsets(scene, target)
        ends = center[:2] + moves  # of the object's root body
        spots = ends - (spin @ offset)[:2]
        contact = heights.contact(held @ spin.T, spots)
        bodies = np.column_stack([ends, contact + offset[2]])
        ok = np.array([_would_hold(scene, target, body) for body in bodies])
        far = np.maximum(0, reach(spots, contact, scene.shoulder) - EASY_REACH)
        cost = np.linalg.norm(moves, axis=1) + 3 * contact + 0.03 * abs(turn) + 3 * far + 10.0 * ~ok
        best = int(np.argmin(cost))
        options.append((cost[best], np.array([*spots[best], contact[best]]), scene.yaw + turn))
    _, position, yaw = min(options, key=lambda option: option[0])
    return position, yaw


def _offsets(scene: Scene, target: str) -> np.ndarray:
    """Candidate displacements [S, 2] of the object from the middle of the target."""
    site = scene.env.object_sites_dict.get(target)
    size = np.array([0.015, 0.015]) if site is None else 0.8 * scene.region_half_size(target)[:2]
    axes = [np.arange(-np.floor(half / 0.01), np.floor(half / 0.01) + 1) * 0.01 for half in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _would_hold(scene: Scene, target: str, body: np.ndarray) -> bool:
    site = scene.env.object_sites_dict.get(target)
    center = scene.position(target)
    if site is None:
        return bool(np.linalg.norm(body[:2] - center[:2]) < 0.025 and body[2] >= center[2])
    rotation = scene.data.site(target).xmat.reshape(3, 3)
    if scene.is_inside_goal(target):
        return bool(site.in_box(center, rotation, body))
    return bool(site.under(center, rotation, body))


def place(scene: Scene, name: str, target: str) -> Iterator[Step]:
    """Carry the held object over a target, set it down, let go, and retreat upwards; ends early where it is lost."""
    position, yaw = find_place(scene, name, target)
    offset = scene.position(name) - scene.hand
    rotation = yaw_rotation(yaw)
    others = scene.other_points(name)
    carry = Label(phase="carry", subject=name, target=target)
    yield from transit(scene, carry, relative_to_hand(scene, name), position[:2], yaw, CLOSED, others)
    if np.linalg.norm(scene.position(name) - scene.hand) > np.linalg.norm(offset) + LOST:
        return
    # The grasp may have slipped on the way: aim anew from where the object hangs now.
    position, yaw = find_place(scene, name, target)
    above = np.array([*position[:2], scene.hand[2]])
    yield from move(scene, carry, above, rotation, CLOSED, tolerance=0.006, max_steps=12)
    lowered = position + 0.006 * UP
    lower, release = (Label(phase=phase, subject=name, target=target) for phase in ("lower", "release"))
    yield from move(scene, lower, lowered, rotation, CLOSED, tolerance=0.006)
    yield from squeeze(scene, release, OPEN)
    retreat = Label(phase="retreat", subject=name)
    yield from move(scene, retreat, scene.hand + 0.10 * UP, rotation, OPEN, tolerance=0.02)


def pick_and_place(scene: Scene, predicate: list[str]) -> Iterator[Step]:
    """Picks an object and places it, again with another grasp where that failed."""
    _, name, target = predicate
    if is_flat(scene.points(name)):
        yield from drag(scene, predicate)
        return
    tried: list[np.ndarray] = []
    for _ in range(NUM_TRIES):
        held = yield from pick(scene, name, target, tried)
        if held:
            yield from place(scene, name, target)
        if scene.holds(predicate):
            return
        rise = scene.hand + 0.08 * UP
        yield from move(scene, Label(phase="retreat", subject=name), rise, scene.hand_rotation, OPEN, max_steps=10)


def is_flat(shape: np.ndarray) -> bool:
    """Whether points [N, 3] are of a plate: wide, and with a rim too shallow to hold."""
    width, depth, height = np.ptp(shape, axis=0)
    return bool(min(width, depth) > 2 * FINGER_OUTER and height < 0.03)


def drag(scene: Scene, predicate: list[str]) -> Iterator[Step]:
    """Presses the closed fingers into a plate and drags it over the table."""
    _, name, target = predicate
    approach, push = Label(phase="approach", subject=name), Label(phase="push", subject=name, target=target)
    for _ in range(NUM_TRIES):
        spot = scene.position(name)[:2]
        # The hand is wide: turn it so that it comes down between what stands around.
        heights = HeightMap(scene.other_points(name), scene.floor, scene.hand)
        fist = gripper_points(0.0)
        contacts = {yaw: heights.contact(fist @ yaw_rotation(yaw).T, spot[None])[0] for yaw in (0.0, np.pi / 2)}
        yaw = nearest_yaw(min(contacts, key=contacts.__getitem__), scene.yaw)
        rotation = yaw_rotation(yaw)
        above = np.array([*spot, scene.floor + TIP_DEPTH + 0.03])
        held = fist @ rotation.T
        yield from transit(scene, approach, held, spot, yaw, CLOSED, scene.other_points())
        yield from move(scene, approach, above, rotation, CLOSED)
        for _ in range(80):
            rest = (scene.position(target) - scene.position(name))[:2]
            if scene.holds(predicate):
                break
            # Aimed below the plate's bottom, so that the controller presses.
            ahead = scene.hand[:2] + 0.03 * rest / max(0.03, float(np.linalg.norm(rest)))
            goal = np.array([*ahead, scene.floor + TIP_DEPTH - PRESSURE])
            yield towards(scene, push, goal, rotation, CLOSED)
        rise = scene.hand + 0.08 * UP
        yield from move(scene, Label(phase="retreat", subject=name), rise, rotation, CLOSED, tolerance=0.02)
        if scene.holds(predicate):
            return
