"""Made-up takes, for the tests of what annotates them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvla.annotation.take import Take
from rlvla.types import Box, Decision, Scene, SceneObject

BLOCK, BOWL = (100, 100, 160, 160), (700, 700, 900, 900)


def scene(subject: str = "red block", intention: str = "move to the red block") -> Scene:
    """A block and a bowl."""
    objects = (SceneObject(name="red block", box=BLOCK, is_target=True), SceneObject(name="bowl", box=BOWL))
    return Scene(objects=objects, subject=subject, intention=intention)


def take(grippers: Sequence[Sequence[float]], *, proprio: np.ndarray | None = None, is_known: bool = False) -> Take:
    """A take whose decision i executes the gripper commands `grippers[i]`; with a scene where `is_known`."""
    stride = len(grippers[0])

    def zoom(image: int, box: Box) -> np.ndarray:
        return np.full((8, 8, 3), box[0] % 256, np.uint8)

    decisions = tuple(
        Decision(
            instruction="put the red block into the bowl",
            images=(np.full((8, 8, 3), i, np.uint8),),
            proprio=np.array([i, 0, 0], np.float32) if proprio is None else proprio[i],
            actions=np.array([[0.1, command] for command in commands], np.float32),
            zoom=zoom,
            scene=scene() if is_known else None,
        )
        for i, commands in enumerate(grippers)
    )
    return Take(index=0, name="take 0", decisions=decisions, stride=stride, fps=10.0)
