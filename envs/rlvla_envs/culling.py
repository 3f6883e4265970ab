"""Leaves out of a MuJoCo picture what no pixel of it shows. MuJoCo transforms and lights every vertex of every mesh."""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import itertools

import mujoco
import numpy as np

_MARGIN = 1e-3
"""Geoms may come so near to the picture's border, m, before they are in it: OpenGL rounds to float32."""
_NONE = int(mujoco.mjtGeom.mjGEOM_NONE)
_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_BOX = int(mujoco.mjtGeom.mjGEOM_BOX)
_REFLECTING = (int(mujoco.mjtGeom.mjGEOM_PLANE), _BOX)


class Culling:
    """The bounding boxes of a model's geoms, held against the frustum of a picture, and of what is mirrored in it."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        centre, half = model.geom_aabb[:, None, :3], model.geom_aabb[:, None, 3:]
        self._corners = centre + half * np.array(list(itertools.product((-1, 1), repeat=3)))
        """[num geoms, 8, 3], each in its geom's frame, m."""
        self._is_endless = model.geom_rbound <= 0

    def apply(self, picture: mujoco.MjvScene, data: mujoco.MjData, aspect: float) -> None:
        """Turn geoms that are out of the picture into none; pixels stay as they are.

        Args:
            picture: as `mjv_updateScene` has filled it, its cameras aimed.
            data: with the geoms' poses.
            aspect: width by height, where the cameras do not say a width.
        """
        is_shadowy = picture.flags[mujoco.mjtRndFlag.mjRND_SHADOW] and self._model.light_castshadow.any()
        if is_shadowy or picture.camera[0].orthographic:  # what is out of it may throw a shadow into it
            return
        turned = self._corners @ data.geom_xmat.reshape(-1, 3, 3).transpose(0, 2, 1)
        corners = turned + data.geom_xpos[:, None]
        view = _View(picture, aspect)
        is_seen = _reaches_into(view.planes(), corners - view.eye) | self._is_endless
        geoms = list(picture.geoms[: picture.ngeom])
        mirror = next((geom for geom in geoms if geom.type in _REFLECTING and geom.reflectance > 0), None)
        if mirror is not None and mirror.objtype == _GEOM and not is_seen[mirror.objid]:
            # MuJoCo lets the first one reflect, and makes the others dull: the next must not take its place.
            for geom in geoms:
                geom.reflectance = 0
        elif mirror is not None:
            is_seen |= _is_mirrored(mirror, corners, view)
        for geom in geoms:
            if geom.objtype == _GEOM and not is_seen[geom.objid]:
                geom.type = _NONE


class _View:
    """The frustum of a picture. Of MuJoCo's two cameras, one for each of a viewer's eyes, it is seen by the mean."""

    def __init__(self, picture: mujoco.MjvScene, aspect: float) -> None:
        def mean(name: str) -> np.ndarray:
            return np.mean([np.asarray(getattr(camera, name), np.float64) for camera in picture.camera], axis=0)

        forward, up = mean("forward"), mean("up")
        self.axes = np.array([np.cross(forward, up), up, forward])
        """To the right, up and forward, [3, 3]."""
        self.eye = mean("pos")
        self.near, top, bottom, centre = (
            float(mean(f"frustum_{name}")) for name in ("near", "top", "bottom", "center")
        )
        half = float(mean("frustum_width")) or aspect * (top - bottom) / 2
        self.slopes = np.array([[centre - half, bottom], [centre + half, top]]) / self.near
        """Of its sides: least and most of right and up by forward, [2, 2]."""

    def planes(self, slopes: np.ndarray | None = None) -> np.ndarray:
        """[5, 4]: n and d of its sides, or of narrower ones, and of the near plane.

        n @ p + d is the distance from it of a point p [3] (m, from the eye), which is at least 0 in the frustum.
        """
        (left, bottom), (right, top) = self.slopes if slopes is None else slopes
        sides = np.array([[1, 0, -left], [-1, 0, right], [0, 1, -bottom], [0, -1, top], [0, 0, 1]])
        normals = sides / np.linalg.norm(sides, axis=1, keepdims=True) @ self.axes
        return np.column_stack([normals, [0, 0, 0, 0, -self.near]])


def _reaches_into(planes: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Of boxes [N, 8, 3], which are not wholly on the far side of one of the planes [P, 4]: bool [N]."""
    distances = corners @ planes[:, :3].T + planes[:, 3]
    return (distances.max(axis=1) >= -_MARGIN).all(axis=1)


def _is_mirrored(mirror: mujoco.MjvGeom, corners: np.ndarray, view: _View) -> np.ndarray:
    """Of boxes [N, 8, 3], which may be seen in a plane, or in a box, whose upper face reflects alone: bool [N]."""
    pose, size = np.asarray(mirror.mat, np.float64), np.asarray(mirror.size, np.float64)
    normal, face = pose[:, 2], np.asarray(mirror.pos, np.float64) - view.eye
    slopes = view.slopes
    if mirror.type == _BOX:
        face = face + size[2] * normal
        quad = face + np.array(list(itertools.product((-1, 1), repeat=2))) * size[:2] @ pose[:, :2].T
        right, up, forward = (quad @ view.axes.T).T
        if forward.min() > view.near:
            seen = np.stack([right, up]) / forward
            slack = _MARGIN / forward.min()
            low, high = seen.min(axis=1) - slack, seen.max(axis=1) + slack
            slopes = np.array([np.maximum(slopes[0], low), np.minimum(slopes[1], high)])
    if face @ normal >= 0:  # the face is turned away
        return np.zeros(len(corners), bool)
    heights = (corners - view.eye - face) @ normal
    images = corners - view.eye - 2 * heights[..., None] * normal
    return _reaches_into(view.planes(slopes), images) & (heights.max(axis=1) >= -_MARGIN)
