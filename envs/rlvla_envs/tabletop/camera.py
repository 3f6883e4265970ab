"""The orthographic top camera of `rlvla/Tabletop-v0`, off screen."""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import weakref

import mujoco
import numpy as np

from rlvla_envs.offscreen import free, gl_context
from rlvla_envs.tabletop.model import TABLE_SIZE
from rlvla_envs.tabletop.scene import Scene

NATIVE_SIZE = 512
"""Side of the native frame, pixels."""
_PIXEL = TABLE_SIZE / NATIVE_SIZE


class TopCamera:
    """Renders one scene. Owns a GL context: use it from the thread that made it, and `close` it."""

    def __init__(self, scene: Scene) -> None:
        """Creates the GL context."""
        self._scene = scene
        self._gl = gl_context(NATIVE_SIZE)
        self._gl.make_current()
        self._context = mujoco.MjrContext(scene.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        # Also at interpreter exit, which is too late for the contexts' own destructors.
        self._free = weakref.finalize(self, free, self._gl, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._picture = mujoco.MjvScene(scene.model, maxgeom=100)
        self._picture.flags[:] = 0  # no shadow, reflection, haze: a flat top has one exact colour
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = scene.model.camera("top").id

    def frame(self, pixels: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The scene now, uint8 [H, W, 3].

        Args:
            pixels: [x1, y1, x2, y2] of the native frame, end exclusive: only this part is rendered,
                by an off-axis frustum, and equals the same part of the whole frame. None for the
                whole frame.
        """
        model, data = self._scene.model, self._scene.data
        # Only what the picture needs, and nothing that the next physics step starts from.
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        self._gl.make_current()
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._picture)
        x1, y1, x2, y2 = pixels or (0, 0, NATIVE_SIZE, NATIVE_SIZE)
        for camera in self._picture.camera:
            camera.frustum_center = (x1 + x2) / 2 * _PIXEL - TABLE_SIZE / 2
            camera.frustum_width = (x2 - x1) / 2 * _PIXEL  # MuJoCo means the half width
            camera.frustum_bottom = TABLE_SIZE / 2 - y2 * _PIXEL
            camera.frustum_top = TABLE_SIZE / 2 - y1 * _PIXEL
        image = np.empty((y2 - y1, x2 - x1, 3), np.uint8)
        viewport = mujoco.MjrRect(0, 0, x2 - x1, y2 - y1)
        mujoco.mjr_render(viewport, self._picture, self._context)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL's first row is the bottom one

    def close(self) -> None:
        """Frees the GL context; the camera cannot be used afterwards."""
        self._free()
