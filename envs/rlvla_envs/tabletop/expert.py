"""Scripted experts for `rlvla/Tabletop-v0`, from privileged state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlvla.types import Decision, Scene
from rlvla_envs.spec import Observation, decision_of, scene_of
from rlvla_envs.tabletop.env import TabletopEnv
from rlvla_envs.tabletop.model import BADGE_SIZE
from rlvla_envs.tabletop.scene import ObjectInfo

HOVER_HEIGHT = 0.08
"""Fingertips above everything that lies on the table, also with a block between them, m."""
PRESS_HEIGHT = 0.015
"""Fingertips well below a pad's top, so that the servos push it in, m."""
GRASP_HEIGHT = 0.015
RELEASE_HEIGHT = 0.055
"""A held block just clears the bowl's rim, m."""
CLOSED, OPEN = -1.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One env step of the expert."""

    action: tuple[float, float, float, float]
    phrase: str
    """What it is for, in words."""


def play(
    env: TabletopEnv, task_id: int, init_state_id: int, *, chunk_length: int, stride: int, rng: np.random.Generator
) -> list[Decision] | None:
    """Play one episode, as `AnnotateConfig.expert` has it; the same each time, whatever `rng` is.

    Raises:
        ValueError: `stride` does not divide `chunk_length`.
    """
    if chunk_length % stride:
        raise ValueError(f"stride {stride} does not divide chunk_length {chunk_length}")
    observation, info = env.reset(options={"task_id": task_id, "init_state_id": init_state_id})
    seen: list[Decision] = []
    steps: list[Step] = []
    is_over = False
    while not is_over:
        target = next(o for o in env.scene.objects() if o.is_target)
        steps = steps[: len(seen) * stride] + plan(env, target, chunk_length)
        for start in range(len(seen) * stride, len(steps), stride):
            now = steps[start : start + stride]
            seen.append(_decision(env, observation, now))
            _, terminated, truncated, info = env.act(actions_of(now))
            is_over = terminated or truncated
            if is_over:
                break
            observation = env.observe()
    if not info["is_success"]:
        return None
    steps += steps[-1:] * chunk_length
    return [_with_chunk(decision, steps[i * stride : i * stride + chunk_length]) for i, decision in enumerate(seen)]


def _with_chunk(decision: Decision, steps: Sequence[Step]) -> Decision:
    """A decision that means and does these steps, also those before which the next decision comes."""
    scene = replace(scene_of(decision), intention=_intention(steps))
    return replace(decision, actions=actions_of(steps), scene=scene)


def _decision(env: TabletopEnv, observation: Observation, steps: Sequence[Step]) -> Decision:
    """What is seen before these steps."""
    objects = env.scene.objects()
    subject = next(o.name for o in objects if o.is_target)
    scene = Scene(objects=objects, subject=subject, intention=_intention(steps))
    return decision_of(env, observation, actions_of(steps), scene)


def actions_of(steps: Sequence[Step]) -> np.ndarray:
    """float32 [K, 4]."""
    return np.array([step.action for step in steps], np.float32)


def _intention(steps: Sequence[Step]) -> str:
    return ", then ".join(dict.fromkeys(step.phrase for step in steps))


def plan(env: TabletopEnv, aim: ObjectInfo, num_steps: int) -> list[Step]:
    """The expert's next steps from the present state.

    Args:
        env: after a reset.
        aim: what to press, or to put into the bowl.
        num_steps: K. With 5, "press" is one chunk (4 hover, 1 press) and "pick" three (3 hover, 2
            descend; 2 close, 3 lift; 3 carry, 2 release).
    """
    is_press = env.task_name == "press"
    steps = _press_plan(aim, num_steps) if is_press else _pick_plan(env, aim, env.scene.objects()[-1])
    return (steps + steps[-1:] * (num_steps - len(steps)))[:num_steps]


def _press_plan(pad: ObjectInfo, num_steps: int) -> list[Step]:
    """Hover, then down in the last step."""
    x, y, _ = pad.position
    hover = Step(action=(x, y, HOVER_HEIGHT, CLOSED), phrase=f"move above {pad.name}")
    return [hover] * (num_steps - 1) + [Step(action=(x, y, PRESS_HEIGHT, CLOSED), phrase=f"press {pad.name}")]


def _pick_plan(env: TabletopEnv, block: ObjectInfo, bowl: ObjectInfo) -> list[Step]:
    """The rest of the way: approach, grasp, deliver, from where the hand and the block are."""
    (x, y, _), (bowl_x, bowl_y, _) = block.position, bowl.position
    approach = [Step(action=(x, y, HOVER_HEIGHT, OPEN), phrase=f"move above {block.name}")] * 3
    approach += [Step(action=(x, y, GRASP_HEIGHT, OPEN), phrase=f"go down to {block.name}")] * 2
    grasp = [Step(action=(x, y, GRASP_HEIGHT, CLOSED), phrase=f"grasp {block.name}")]
    grasp += [Step(action=(x, y, GRASP_HEIGHT, CLOSED), phrase=f"hold {block.name}")]
    grasp += [Step(action=(x, y, HOVER_HEIGHT, CLOSED), phrase=f"lift {block.name}")] * 3
    deliver = [Step(action=(bowl_x, bowl_y, HOVER_HEIGHT, CLOSED), phrase=f"carry {block.name} to the bowl")] * 3
    deliver += [Step(action=(bowl_x, bowl_y, RELEASE_HEIGHT, OPEN), phrase=f"release {block.name} into the bowl")] * 2

    offset = block.position - env.scene.hand
    around = bool(np.abs(offset[:2]).max() < 0.012 and abs(offset[2]) < 0.02)
    held = around and env.scene.opening < BADGE_SIZE + 0.005
    if held and block.position[2] > BADGE_SIZE:
        return deliver
    if around:
        return (grasp[2:] if held else grasp) + deliver
    return approach + grasp + deliver
