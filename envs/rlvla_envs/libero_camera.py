"""LIBERO's cameras on demand: the frame that the model sees, whole or only the box of a zoom.

OpenVLA's frame is robosuite's picture rotated by 180 degrees (experiments/robot/libero/libero_utils.py,
`get_libero_image`). robosuite's has its first row at the bottom, so the frame is upright and mirrored left to right:
the robot's left appears on the left. The optional centre crop comes after. All boxes here are in that last frame.
"""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import atexit
import weakref

import mujoco
import numpy as np

from rlvla.pictures import CROP_SIDE, center_crop
from rlvla_envs.offscreen import free, gl_context

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""OpenVLA-OFT's third-person and wrist image."""
NATIVE_SIZE = 1024
"""Side of the native frame, pixels: four times the 256 that published policies see."""
_MAX_GEOMS = 1000  # robosuite's utils/binding_utils.py; libero_90's fullest scene has 500
_VISIBLE_GROUP, _COLLISION_GROUP = 1, 0

Window = tuple[float, float, float, float]
"""[x1, y1, x2, y2] as shares 0..1 of a frame."""


class LiberoCameras:
    """Renders one compiled scene. Owns a GL context: use it from the thread that made it, and `close` it."""

    def __init__(self, model: mujoco.MjModel, *, reflections: bool, center_crop: bool) -> None:
        """Creates the GL context and uploads the textures: 0.2 s."""
        self._model = model
        self._margin = (1 - CROP_SIDE) / 2 if center_crop else 0.0
        self._gl = gl_context(NATIVE_SIZE)
        self._gl.make_current()
        model.vis.global_.offwidth = model.vis.global_.offheight = NATIVE_SIZE
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        # Also at interpreter exit: too late for the contexts' own destructors, and before MuJoCo leaves EGL there.
        # Finalizers run where the first one of the process was made, which may be after that.
        self._free = weakref.finalize(self, free, self._gl, self._context)
        self._free.atexit = False
        atexit.register(self._free)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = reflections
        self._option = mujoco.MjvOption()
        self._option.geomgroup[_VISIBLE_GROUP], self._option.geomgroup[_COLLISION_GROUP] = 1, 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def view(self, view: mujoco.MjData, camera: str, size: int) -> np.ndarray:
        """What the policy sees, uint8 [size, size, 3].

        The centre crop is OpenVLA's of a whole frame of this size, interpolation included.

        Args:
            view: positions, see `TaskSim.look`.
            camera: one of `CAMERAS`.
            size: side, pixels.
        """
        frame = self._render(view, camera, size, size, None)
        return center_crop(frame) if self._margin else frame

    def native(self, view: mujoco.MjData, camera: str, pixels: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The native frame, uint8 [H, W, 3], with the same field of view as `view`.

        Args:
            view: positions, see `TaskSim.look`.
            camera: one of `CAMERAS`.
            pixels: [x1, y1, x2, y2] of the native frame, ends exclusive: only this part is rendered, by an off-axis
                frustum, and equals the same part of the whole frame. None for the whole frame.
        """
        x1, y1, x2, y2 = pixels or (0, 0, NATIVE_SIZE, NATIVE_SIZE)
        scale = (1 - 2 * self._margin) / NATIVE_SIZE
        window = tuple(self._margin + v * scale for v in (x1, y1, x2, y2))
        return self._render(view, camera, x2 - x1, y2 - y1, window)  # type: ignore[arg-type]

    def close(self) -> None:
        """Frees the GL context; the cameras cannot be used afterwards."""
        atexit.unregister(self._free)
        self._free()

    def _render(self, view: mujoco.MjData, camera: str, width: int, height: int, window: Window | None) -> np.ndarray:
        """A window of the uncropped frame, or all of it with the very arithmetic of robosuite."""
        self._gl.make_current()
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, view, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        if window is not None:
            _aim(self._scene, window)
        image = np.empty((height, width, 3), np.uint8)
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        # The first row is the bottom one: reversing rows makes it upright, reversing columns mirrors it.
        return np.ascontiguousarray(image[::-1, ::-1])


def project(
    model: mujoco.MjModel, view: mujoco.MjData, camera: str, positions: np.ndarray, *, cropped: bool
) -> np.ndarray:
    """Where points [..., 3] (m) appear in the frame that the model sees: int [..., 2], 0..1000, clipped to it.

    Raises:
        ValueError: a point behind the camera.
    """
    camera_id = model.camera(camera).id
    seen = (positions - view.cam_xpos[camera_id]) @ view.cam_xmat[camera_id].reshape(3, 3)
    right, up, back = np.moveaxis(seen, -1, 0)
    if (back >= 0).any():
        raise ValueError(f"{camera} does not see all of {np.asarray(positions).tolist()}: some is behind the camera")
    half = -back * np.tan(np.deg2rad(model.cam_fovy[camera_id]) / 2)
    # Mirrored: what is right in the room is left.
    shares = np.stack([0.5 - right / half / 2, 0.5 - up / half / 2], axis=-1)
    if cropped:
        shares = 0.5 + (shares - 0.5) / CROP_SIDE
    return np.clip(np.round(shares * 1000), 0, 1000).astype(int)


def _aim(scene: mujoco.MjvScene, window: Window) -> None:
    """Narrows the frustum of a square picture to a window of its mirrored frame."""
    x1, y1, x2, y2 = window
    for camera in scene.camera:
        top, side = camera.frustum_top, camera.frustum_top - camera.frustum_bottom
        camera.frustum_center += side * (0.5 - (x1 + x2) / 2)
        camera.frustum_width = side * (x2 - x1) / 2  # MuJoCo means the half width
        camera.frustum_top, camera.frustum_bottom = top - side * y1, top - side * y2
