"""Scripted experts for `rlvla/Tabletop-v0`, from privileged state."""

from __future__ import annotations

import numpy as np

from rlvla_envs.tabletop import ObjectInfo, TabletopEnv
from rlvla_envs.tabletop_model import BADGE_SIZE

HOVER_HEIGHT = 0.08
"""Fingertips above everything that lies on the table, also with a block between them, m."""
PRESS_HEIGHT = 0.015
"""Fingertips well below a pad's top, so that the servos push it in, m."""
GRASP_HEIGHT = 0.015
RELEASE_HEIGHT = 0.055
"""A held block just clears the bowl's rim, m."""
CLOSED, OPEN = -1.0, 1.0


def expert_chunk(env: TabletopEnv, num_steps: int, target: str | None = None) -> np.ndarray:
    """The expert's next actions from the present state.

    Args:
        env: after a reset.
        num_steps: K. With 5, "press" is one chunk (4 hover, 1 press) and "pick" three (3 hover, 2
            descend; 2 close, 3 lift; 3 carry, 2 release).
        target: badge to aim at instead of the one that the instruction names.

    Returns:
        float32 [K, 4].

    Raises:
        ValueError: no object has this badge.
    """
    objects = env.objects()
    aims = [o for o in objects if (o.is_target if target is None else o.badge == target)]
    if not aims:
        raise ValueError(f"no object has the badge {target!r}")
    if env.task == "press":
        plan = _press_plan(aims[0], num_steps)
    else:
        plan = _pick_plan(env, aims[0], next(o for o in objects if o.name == "bowl"))
    plan += plan[-1:] * (num_steps - len(plan))
    return np.array(plan[:num_steps], np.float32)


def _press_plan(pad: ObjectInfo, num_steps: int) -> list[list[float]]:
    """Hover, then down in the last step."""
    x, y, _ = pad.position
    return [[x, y, HOVER_HEIGHT, CLOSED]] * (num_steps - 1) + [[x, y, PRESS_HEIGHT, CLOSED]]


def _pick_plan(env: TabletopEnv, block: ObjectInfo, bowl: ObjectInfo) -> list[list[float]]:
    """The rest of the way: approach, grasp, deliver, from where the hand and the block are."""
    (x, y, _), (bowl_x, bowl_y, _) = block.position, bowl.position
    approach = [[x, y, HOVER_HEIGHT, OPEN]] * 3 + [[x, y, GRASP_HEIGHT, OPEN]] * 2
    grasp = [[x, y, GRASP_HEIGHT, CLOSED]] * 2 + [[x, y, HOVER_HEIGHT, CLOSED]] * 3
    deliver = [[bowl_x, bowl_y, HOVER_HEIGHT, CLOSED]] * 3
    deliver += [[bowl_x, bowl_y, RELEASE_HEIGHT, OPEN]] * 2

    offset = block.position - env.scene.hand
    around = bool(np.abs(offset[:2]).max() < 0.012 and abs(offset[2]) < 0.02)
    held = around and env.scene.opening < BADGE_SIZE + 0.005
    if held and block.position[2] > BADGE_SIZE:
        return deliver
    if around:
        return (grasp[2:] if held else grasp) + deliver
    return approach + grasp + deliver
