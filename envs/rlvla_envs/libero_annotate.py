"""Templated embodied chain-of-thought for LIBERO's scripted experts: what it does next, and where it looks closely.

Key frames are the decisions during which the gripper opens or closes, as in VLA-Thinker (arXiv 2603.14523): there the
annotator zooms on the object that this is about, with the box that privileged state projects to. All others get a
thought only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rlvla.markup import MIN_BOX_SIDE, print_think, print_zoom
from rlvla.types import Box, Demonstration
from rlvla_envs.libero import LiberoEnv
from rlvla_envs.libero_expert import LiberoExpert
from rlvla_envs.libero_expert_articulated import find_joint
from rlvla_envs.libero_expert_phases import OPEN, Step
from rlvla_envs.libero_expert_scene import Scene

PHRASES = {
    "approach": "move to the {subject}",
    "grasp": "grasp the {subject}",
    "lift": "lift the {subject}",
    "carry": "carry the {subject} to the {target}",
    "lower": "lower the {subject} to the {target}",
    "release": "let go of the {subject}",
    "retreat": "move away from the {subject}",
    "pull": "pull the {subject}",
    "push": "push the {subject}",
    "turn": "turn the {subject}",
    "wait": "wait",
}
"""What the annotator calls the phases of the expert."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """How the annotator looks and plays; the fields are the `expert_kwargs` of `recipes/annotate.py`."""

    margin: int = 20
    """Around the projected object on each side of the zoom box, thousandths of the frame."""
    coordinate_step: int = 10
    """Grid of the coordinates it writes, thousandths of the frame; a box is rounded outwards."""
    noise: float = 0.0
    """Standard deviation of noise on the executed deltas, in units of the action. The demonstration keeps what the
    expert intended from where the noise has brought it, as in DART (arXiv 1703.09327)."""


def demonstrate(
    env: LiberoEnv,
    task_id: int,
    init_state_id: int,
    chunk_length: int,
    rng: np.random.Generator,
    **template: float,
) -> list[Demonstration] | None:
    """Play and annotate one episode.

    The expert reacts to every env step, a policy acts in chunks: so the episode is played first, without pictures, and
    then again from the same state with the actions that are known by now, seen once a chunk.

    Args:
        env: LIBERO.
        task_id: of the env's tasks.
        init_state_id: from the train split.
        chunk_length: K, env steps a decision; 8 in OpenVLA-OFT.
        rng: draws the noise.
        **template: fields of `Template`.

    Returns:
        One demonstration a decision; None where the expert failed.
    """
    style = Template(**template)  # type: ignore[arg-type]
    options = {"task_id": task_id, "init_state_id": init_state_id}
    env.reset(options=options)
    steps = _play(env, LiberoExpert(env.robosuite, noise=style.noise, rng=rng), chunk_length)
    if steps is None:
        return None
    observation, _ = env.reset(options=options)
    scene = Scene(env.robosuite)
    demonstrations: list[Demonstration] = []
    gripper = OPEN
    for start in range(0, len(steps), chunk_length):
        chunk = steps[start : start + chunk_length]
        texts, boxes = _annotate(env, scene, style, chunk, gripper)
        gripper = chunk[-1].action[6]
        carried = demonstrations[-1].texts[-1] if demonstrations else ""
        demonstrations.append(
            Demonstration(
                instruction=observation["instruction"],
                images=tuple(observation["images"]),
                proprio=observation["proprio"],
                texts=texts,
                crops=tuple(env.zoom(0, box) for box in boxes),
                actions=np.stack([step.intended for step in chunk]),
                carried_thought=carried.removeprefix("<think>").removesuffix("</think>"),
            )
        )
        observation, _, terminated, truncated, info = env.step_chunk(np.stack([step.action for step in chunk]))
        if terminated or truncated:
            return demonstrations if info["is_success"] else None
    return None


def _play(env: LiberoEnv, expert: LiberoExpert, chunk_length: int) -> list[Step] | None:
    """The steps of a successful episode, continued to a whole number of chunks; None where it fails."""
    steps: list[Step] = []
    is_success = False
    while not is_success or len(steps) % chunk_length:
        if not is_success and len(steps) >= env.max_env_steps(env.task_names.index(env.task_name)):
            return None
        steps.append(expert.step())
        _, _, reached, _ = env.robosuite.step(steps[-1].action.astype(np.float64))
        is_success = is_success or bool(reached)
    return steps


def _annotate(
    env: LiberoEnv, scene: Scene, style: Template, chunk: list[Step], gripper: float
) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    """Texts and zoom boxes of one decision.

    Args:
        env: as the decision finds it.
        scene: of the same env.
        style: see `Template`.
        chunk: the steps decided on.
        gripper: the command before them.
    """
    labels = [step.label for step in chunk]
    changes = [label for label, before in zip(labels, [None, *labels], strict=False) if label != before]
    phrases = [PHRASES[label.phase].format(subject=name(label.subject), target=name(label.target)) for label in changes]
    thought = ", then ".join(phrases)
    commands = [gripper, *(step.action[6] for step in chunk)]
    keys = [label for label, (before, after) in zip(labels, pairwise(commands), strict=True) if before != after]
    if not keys:
        return (print_think(thought),), ()
    key = keys[0]
    box = zoom_box(env, subject_points(scene, key.subject), style)
    verb = "close" if max(commands[1:]) > gripper else "open"
    look = f"about to {verb} the gripper at the {name(key.subject)}: look closely"
    center = f"{(box[0] + box[2]) // 2} {(box[1] + box[3]) // 2}"
    return (print_think(look) + print_zoom(0, box), print_think(f"{name(key.subject)} at {center}: {thought}")), (box,)


def name(identifier: str) -> str:
    """LIBERO's identifier in words: without its number."""
    return " ".join(word for word in identifier.split("_") if not word.isdigit())


def subject_points(scene: Scene, subject: str) -> np.ndarray:
    """What can be seen of an object or a fixture, or the part that moves with a region, [N, 3]."""
    if subject in scene.env.objects_dict:
        return scene.points(subject)
    return scene.body_points(find_joint(scene, subject).body)


def zoom_box(env: LiberoEnv, points: np.ndarray, style: Template) -> Box:
    """The box around what points [N, 3] project to, within the frame and not too small for the tool."""
    corners = np.array([env.project(point) for point in points])
    low, high = corners.min(axis=0) - style.margin, corners.max(axis=0) + style.margin
    grid = style.coordinate_step
    low = np.clip(low // grid * grid, 0, 1000 - MIN_BOX_SIDE)
    high = np.clip(-(-high // grid) * grid, low + MIN_BOX_SIDE, 1000)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
