"""Privileged knowledge of a tabletop scene: what each object is, and where in the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlvla_envs.spec import Box
from rlvla_envs.tabletop.model import BADGE_SIZE, BOWL_RADIUS, CM, TABLE_SIZE
from rlvla_envs.tabletop.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What experts and annotators may know about an object, and the policy must find out."""

    name: str
    """"pad 1" or "block 3", counted left to right, then top to bottom, at the start; or "bowl"."""
    badge: str | None
    """Colour; None for the bowl."""
    is_target: bool
    """Whether the instruction names it."""
    center: tuple[int, int]
    """In the image, 0..1000."""
    bbox: Box
    """Of the badge (of the bowl: its inside) in the image, 0..1000."""
    position: np.ndarray
    """[3], m: top of a pad, centre of a block, bottom of the bowl."""


def project(position: np.ndarray) -> tuple[int, int]:
    """Where a point [3] (m) appears in the image, 0..1000, clipped to it."""
    x, y = position[:2]
    u, v = (x / TABLE_SIZE + 0.5) * 1000, (0.5 - y / TABLE_SIZE) * 1000
    return int(np.clip(round(u), 0, 1000)), int(np.clip(round(v), 0, 1000))


def describe_objects(scene: Scene) -> tuple[ObjectInfo, ...]:
    """Where everything is now: the badged objects in the order of the layout, then the bowl."""
    layout = scene.layout
    noun = "pad" if layout.bowl is None else "block"
    infos = [
        _info(f"{noun} {i + 1}", badge, i == layout.target, scene.object_position(i), BADGE_SIZE / 2)
        for i, badge in enumerate(layout.badges)
    ]
    if layout.bowl is not None:
        position = np.array([layout.bowl[0] * CM, layout.bowl[1] * CM, 0.0])
        infos.append(_info("bowl", None, False, position, BOWL_RADIUS))
    return tuple(infos)


def _info(name: str, badge: str | None, is_target: bool, position: np.ndarray, half: float) -> ObjectInfo:
    """An object that reaches `half` (m) to each side of its centre."""
    x1, y1 = project(position + np.array([-half, half, 0]))
    x2, y2 = project(position + np.array([half, -half, 0]))
    return ObjectInfo(
        name=name,
        badge=badge,
        is_target=is_target,
        center=project(position),
        bbox=(x1, y1, x2, y2),
        position=position,
    )
