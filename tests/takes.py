"""Made-up takes of an expert, and queries about them, for the tests of what annotates them.

decision   0     1     2       3       4     5       6      7
gripper    open  open  open    closed  ..    closed  open   open
switches               close                 open
segments   [0        ..   2]  [3        ..   5]     [6  ..  7]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlvla.annotation.take import Query, Take
from rlvla.types import Annotation, Box, Decision, Scene, SceneObject, Switch, Timeline

BLOCK: Box = (400, 400, 500, 500)
OBJECTS = (
    SceneObject(name="red block", box=BLOCK, is_target=True),
    SceneObject(name="blue block", box=(700, 100, 800, 200)),
    SceneObject(name="white bowl", box=(100, 600, 400, 900)),
)
INSTRUCTION = "put the red block into the white bowl"
SWITCHES: tuple[Switch, ...] = ("", "", "close", "", "", "open", "", "")
KEYS = (2, 5)
"""The decisions in which the gripper closes and opens."""
SUBJECTS = ("red block",) * 8


def idle(length: int) -> tuple[Switch, ...]:
    """Switches of a gripper that does nothing."""
    nothing: Switch = ""
    return (nothing,) * length


def timeline(switches: Sequence[Switch] = SWITCHES) -> Timeline:
    """Of a gripper that does this, open at first; every switch is a key frame that ends a sub-task."""
    states, starts = [False], [0]
    for index, switch in enumerate(switches):
        states.append({"": states[-1], "close": True, "open": False}[switch])
        if switch and index + 1 < len(switches):
            starts.append(index + 1)
    return Timeline(
        is_key=tuple(bool(switch) for switch in switches),
        is_closed=tuple(states[:-1]),
        switches=tuple(switches),
        segments=tuple(range(start, end) for start, end in zip(starts, [*starts[1:], len(switches)], strict=True)),
    )


def take(
    subjects: Sequence[str] | None = SUBJECTS,
    *,
    length: int = len(SUBJECTS),
    instruction: str = INSTRUCTION,
    num_images: int = 1,
    side: int = 8,
) -> Take:
    """A take whose expert deals with these objects, one a decision; None: nobody knows the scene."""
    noise = np.random.default_rng(0).integers(0, 256, (length, num_images, side, side, 3), np.uint8)
    scenes = [None] * length if subjects is None else [_scene(subject) for subject in subjects]
    decisions = (_decision(tuple(n), instruction, scene) for scene, n in zip(scenes, noise, strict=True))
    return Take(index=0, name="made up", decisions=tuple(decisions), stride=8, fps=20.0)


def moving(grippers: Sequence[Sequence[float]], *, proprio: np.ndarray | None = None) -> Take:
    """A take whose decision i executes the gripper commands `grippers[i]`, and picture i shows i."""
    decisions = tuple(
        replace(
            _decision((np.full((8, 8, 3), i, np.uint8),)),
            proprio=np.array([i, 0, 0], np.float32) if proprio is None else proprio[i],
            actions=np.array([[0.1, command] for command in commands], np.float32),
        )
        for i, commands in enumerate(grippers)
    )
    return Take(index=0, name="take 0", decisions=decisions, stride=len(grippers[0]), fps=10.0)


def query(index: int, *, of: Take | None = None, **fields: Any) -> Query:
    """About one decision of `of`, or of a take of which nobody knows the scene."""
    asked = Query(take=of or take(None), timeline=timeline(), index=index, seed=100 + index)
    return replace(asked, **fields)


def _scene(subject: str) -> Scene:
    return Scene(objects=OBJECTS, subject=subject, intention=f"deal with the {subject}")


def _decision(images: tuple[np.ndarray, ...], instruction: str = INSTRUCTION, scene: Scene | None = None) -> Decision:
    did = {"proprio": np.zeros(3, np.float32), "actions": np.zeros((8, 7), np.float32)}
    crop = np.zeros((8, 8, 3), np.uint8)
    return Decision(instruction=instruction, images=images, **did, zoom=lambda image, box: crop, scene=scene)


def thought(text: str = "move down to the red block", **fields: Any) -> Annotation:
    """What is thought between key frames."""
    return Annotation(thoughts=(text,), **{"subject": "red block", **fields})


def look(
    before: str = "the red block may be between the fingers: look closely",
    after: str = "the red block is between the fingers, so the gripper closes",
    *,
    box: Box = (350, 350, 550, 550),
    image: int = 0,
    **fields: Any,
) -> Annotation:
    """What is thought at a key frame."""
    return Annotation(thoughts=(before, after), looks=((image, box),), **{"subject": "red block", **fields})
