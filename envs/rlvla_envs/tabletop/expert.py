"""Scripted experts for `rlvla/Tabletop-v0`, from privileged state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlvla.types import Decision, Scene
from rlvla_envs.spec import Observation, decision_of, scene_of
from rlvla_envs.tabletop.env import MAX_MOVE, TabletopEnv
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
ARRIVED = 0.004
"""A small move ends this near its goal, m; the fingers have a centimetre to spare on each side of a block."""
MAX_GRIPPER_STEPS = 5
"""Env steps in which fingers open or close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One env step of the expert."""

    action: tuple[float, float, float, float]
    phrase: str
    """What it is for, in words."""
    may_stray: bool = False
    """Whether the hand is on its way across the table, where it does no harm if it goes a little astray."""


def play(
    env: TabletopEnv,
    task_id: int,
    init_state_id: int,
    *,
    chunk_length: int,
    stride: int,
    rng: np.random.Generator,
    noise: float = 0.0,
    offset: Sequence[float] = (0.0, 0.0),
) -> list[Decision] | None:
    """Play one episode, as `AnnotateConfig.expert` has it.

    Where the env's `max_move` is its default, the expert plans a chunk at a time, whose targets the hand may reach in
    a few env steps. Below it, the expert decides anew at every env step, and goes in small moves: a chunk is what it
    did from a decision on, a chain of targets no more than `max_move` apart.

    Args:
        env: to play in.
        task_id: of the task.
        init_state_id: where it begins.
        chunk_length: K, env steps that a decision plans.
        stride: env steps from one decision to the next.
        rng: draws the noise, nothing else.
        noise: standard deviation, m, of what is added to the targets of small moves while the hand is on its way
            across the table. The decision keeps what the expert intended from where that has brought it, as in DART
            (arXiv 1703.09327).
        offset: x and y, m, from the middle of a pad to where it is pressed, in small moves. Up to 0.05 the finger still
            meets the pad's edge, but who imitates it misses some: something that a reward can mend.

    Raises:
        ValueError: `stride` does not divide `chunk_length`; or there is noise or an offset, and the env has the default
            `max_move`.
    """
    if chunk_length % stride:
        raise ValueError(f"stride {stride} does not divide chunk_length {chunk_length}")
    is_fine = env.max_move < MAX_MOVE
    for key, value, is_set in (("noise", noise, noise > 0), ("offset", offset, any(offset))):
        if is_set and not is_fine:
            below = f"set env.kwargs.max_move below {MAX_MOVE}"
            raise ValueError(f"expert_kwargs: {key} {value} is for small moves: {below}")
    observation, info = env.reset(options={"task_id": task_id, "init_state_id": init_state_id})
    intended = small_moves(env, offset) if is_fine else _planned(env, chunk_length)
    seen: list[Decision] = []
    steps: list[Step] = []
    is_over = False
    while not is_over:
        if len(steps) % stride == 0:
            seen.append(_decision(env, observation if not steps else env.observe()))
        steps.append(next(intended))
        _, terminated, truncated, info = env.act(actions_of([_disturbed(steps[-1], noise, rng)]))
        is_over = terminated or truncated
    if not info["is_success"]:
        return None
    if not is_fine:  # what the last plan goes on with
        steps += [next(intended) for _ in range(-len(steps) % chunk_length)]
    steps += steps[-1:] * chunk_length
    return [_with_chunk(decision, steps[i * stride : i * stride + chunk_length]) for i, decision in enumerate(seen)]


def _planned(env: TabletopEnv, chunk_length: int) -> Iterator[Step]:
    """Plans of a chunk each, from the state that the env is in when its first step is asked for."""
    while True:
        yield from plan(env, next(o for o in env.scene.objects() if o.is_target), chunk_length)


def _disturbed(step: Step, noise: float, rng: np.random.Generator) -> Step:
    """The step that is executed where another was intended."""
    if not noise or not step.may_stray:
        return step
    x, y, z, gripper = step.action
    dx, dy, dz = rng.normal(0, noise, 3)
    return replace(step, action=(x + dx, y + dy, z + dz, gripper))


def _with_chunk(decision: Decision, steps: Sequence[Step]) -> Decision:
    """A decision that means and does these steps, also those before which the next decision comes."""
    scene = replace(scene_of(decision), intention=_intention(steps))
    return replace(decision, actions=actions_of(steps), scene=scene)


def _decision(env: TabletopEnv, observation: Observation) -> Decision:
    """What is seen now, before anything is done."""
    objects = env.scene.objects()
    scene = Scene(objects=objects, subject=next(o.name for o in objects if o.is_target), intention="")
    return decision_of(env, observation, np.zeros((0, 4), np.float32), scene)


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


def small_moves(env: TabletopEnv, offset: Sequence[float]) -> Iterator[Step]:
    """The expert's step from wherever the hand is, each time one is asked for, by at most `max_move`; without end.

    The hand stands still over a pad before it presses it, and where the gripper opens or closes.
    """
    while True:
        target = next(i for i, o in enumerate(env.scene.objects()) if o.is_target)
        yield from _press_moves(env, target, offset) if env.task_name == "press" else _pick_moves(env, target)


def _press_moves(env: TabletopEnv, pad: int, offset: Sequence[float]) -> Iterator[Step]:
    name, (x, y, _) = env.scene.objects()[pad].name, env.scene.object_position(pad)
    x, y = x + offset[0], y + offset[1]
    yield from _go(env, (x, y, HOVER_HEIGHT), CLOSED, f"move above {name}")
    while True:
        yield _toward(env, (x, y, PRESS_HEIGHT), CLOSED, f"press {name}")


def _pick_moves(env: TabletopEnv, block: int) -> Iterator[Step]:
    """One attempt; ends where the block is not in the hand after all, or not in the bowl."""
    scene = env.scene
    name, (x, y, _), (bowl_x, bowl_y, _) = (
        scene.objects()[block].name,
        scene.object_position(block),
        scene.objects()[-1].position,
    )
    yield from _go(env, (x, y, HOVER_HEIGHT), OPEN, f"move above {name}")
    yield from _go(env, (x, y, GRASP_HEIGHT), OPEN, f"go down to {name}")
    for _ in range(MAX_GRIPPER_STEPS):
        yield _toward(env, (x, y, GRASP_HEIGHT), CLOSED, f"grasp {name}")
        if scene.opening < BADGE_SIZE + 0.005:
            break
    yield from _go(env, (x, y, HOVER_HEIGHT), CLOSED, f"lift {name}")
    if scene.object_position(block)[2] > BADGE_SIZE:
        yield from _go(env, (bowl_x, bowl_y, HOVER_HEIGHT), CLOSED, f"carry {name} to the bowl")
        yield from _go(env, (bowl_x, bowl_y, RELEASE_HEIGHT), CLOSED, f"lower {name} to the bowl")
        for _ in range(MAX_GRIPPER_STEPS):
            yield _toward(env, (bowl_x, bowl_y, RELEASE_HEIGHT), OPEN, f"release {name} into the bowl")
        yield from _go(env, (bowl_x, bowl_y, HOVER_HEIGHT), OPEN, f"move away from {name}")


def _go(env: TabletopEnv, goal: tuple[float, float, float], gripper: float, phrase: str) -> Iterator[Step]:
    """Straight on until the hand is there."""
    while np.linalg.norm(goal - env.scene.hand) > ARRIVED:
        yield _toward(env, goal, gripper, phrase)


def _toward(env: TabletopEnv, goal: tuple[float, float, float], gripper: float, phrase: str) -> Step:
    """One move; it may stray while the goal is further away across the table than the move goes."""
    way = goal - env.scene.hand
    x, y, z = env.scene.hand + way * min(1.0, env.max_move / max(float(np.linalg.norm(way)), 1e-9))
    may_stray = bool(np.linalg.norm(way[:2]) > env.max_move)
    return Step(action=(x, y, z, gripper), phrase=phrase, may_stray=may_stray)
