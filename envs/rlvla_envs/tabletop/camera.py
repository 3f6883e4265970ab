"""What the top camera of `rlvla/Tabletop-v0` sees, and the policy of it."""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco
import numpy as np

from rlvla_envs.offscreen import Renderer
from rlvla_envs.tabletop.scene import Scene

NATIVE_SIZE = 512
"""Side of the native frame, pixels."""


class TopCamera(Renderer):
    """The orthographic camera over one scene."""

    def __init__(self, scene: Scene) -> None:
        """Creates the GL context."""
        super().__init__(scene.model, NATIVE_SIZE, max_geoms=100)
        self.picture.flags[:] = 0  # no shadow, reflection, haze: a flat top has one exact colour
        self._scene = scene

    def frame(self, pixels: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The scene now, uint8 [H, W, 3]; with `pixels` [x1, y1, x2, y2], ends exclusive, only this part is drawn."""
        model, data = self._scene.model, self._scene.data
        # Only what the picture needs, and nothing that the next physics step starts from.
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        x1, y1, x2, y2 = pixels or (0, 0, NATIVE_SIZE, NATIVE_SIZE)
        window = (x1 / NATIVE_SIZE, y1 / NATIVE_SIZE, x2 / NATIVE_SIZE, y2 / NATIVE_SIZE)
        return self.draw(data, "top", x2 - x1, y2 - y1, window)


def policy_view(frame: np.ndarray, size: int) -> np.ndarray:
    """Block means of a native frame, rounded half up, uint8 [size, size, 3]."""
    block = NATIVE_SIZE // size
    # Rows first: whole contiguous lines are added, five times as fast as both axes at once.
    rows = frame.reshape(size, block, -1).sum(axis=1, dtype=np.uint32)
    sums = rows.reshape(size, size, block, 3).sum(axis=2)
    return ((sums + block**2 // 2) // block**2).astype(np.uint8)
