"""Templated embodied chain-of-thought for the tabletop expert, from the privileged scene of each decision.

`annotate` is terse, for policies of a million parameters: coordinates instead of words. It is imperfect on purpose, as
annotators are: it often acts before it has looked closely enough, so that the cold start teaches how to look, and
leaves it to GRPO to find out when it pays. `explain` writes sentences, and looks once at each key frame, as
VLA-Thinker's annotator does (arXiv 2603.14523).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvla.types import Annotation, Box, Decision, Scene, SceneObject, Timeline
from rlvla_envs.spec import facts, scene_of
from rlvla_envs.tabletop.model import TABLE_SIZE
from rlvla_envs.tabletop.scene import project


def annotate(
    decisions: Sequence[Decision],
    index: int,
    *,
    timeline: Timeline,
    rng: np.random.Generator,
    look_first: float = 0.7,
    look_again: float = 0.35,
    coordinate_step: int = 25,
    box_side: int = 100,
) -> Annotation:
    """Say in coordinates what to do at one decision, and at the first one find out about what.

    Args:
        decisions: see `AnnotateConfig.annotator`.
        index: likewise.
        timeline: not used: what has to be found out is found out at the start.
        rng: decides how closely the annotator looks.
        look_first: share of episodes in which it zooms on the first object rather than guess.
        look_again: share in which it zooms again when the first object was not the target, rather than guess among
            the rest.
        coordinate_step: grid of the coordinates it writes, thousandths of the frame: fewer numbers are learned sooner.
        box_side: of its zoom boxes, thousandths of the frame: a badge is 62 wide.
    """
    scene = scene_of(decisions[index])
    target = next(o for o in scene.objects if o.is_target)
    bowl = next((o for o in scene.objects if o.name == "bowl"), None)

    def words(info: SceneObject) -> str:
        x, y = _point(info, coordinate_step)
        return f"{x} {y}"

    if index > 0:
        verb, aim = ("press", target) if bowl is None else ("grasp", target) if index == 1 else ("drop", bowl)
        return Annotation(thoughts=(f"{verb} {words(aim)}",), subtask=verb, subject=target.name)
    # The first thought says where all the objects are: every demonstration then teaches to find them, and what comes
    # later copies coordinates instead of finding them again.
    candidates = [o for o in scene.objects if o is not bowl]
    verdict = f"{', '.join(words(o) for o in candidates)}. "
    thoughts, looks = [], []
    for candidate, patience in zip(candidates[:-1], (look_first, *[look_again] * len(candidates)), strict=False):
        if rng.random() >= patience:
            break
        thoughts.append(f"{verdict}look {words(candidate)}")
        looks.append((0, _square(_point(candidate, coordinate_step), box_side)))
        verdict = f"{candidate.label} {'match' if candidate is target else f'not {target.label}'}: "
        if candidate is target:
            break
    verb = "press" if bowl is None else "pick"
    thoughts.append(f"{verdict}{verb} {words(target)}")
    return Annotation(thoughts=tuple(thoughts), looks=tuple(looks), subtask=verb, subject=target.name)


def _center(box: Box) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def _point(info: SceneObject, step: int) -> tuple[int, int]:
    """The object's centre on the grid."""
    x, y = _center(info.box)
    return round(x / step) * step, round(y / step) * step


def _square(center: tuple[int, int], side: int) -> Box:
    """The zoom box around a point, moved into the frame where needed."""
    x, y = (min(max(v - side // 2, 0), 1000 - side) for v in center)
    return x, y, x + side, y + side


def explain(
    decisions: Sequence[Decision],
    index: int,
    *,
    timeline: Timeline,
    rng: np.random.Generator,
    box_side: int = 120,
) -> Annotation:
    """Say in sentences what the expert does; at a key frame look once, `box_side` thousandths of the frame wide."""
    scene = scene_of(decisions[index])
    subject = next(o for o in scene.objects if o.name == scene.subject)
    where = _where(decisions[index], scene, subject, "closed" if timeline.is_closed[index] else "open")
    act = f"Next: {scene.intention}."
    given = facts(decisions, index, timeline, subject.name)
    if not timeline.is_key[index]:
        return Annotation(thoughts=(f"{where}. {act}",), **given)
    look = f"{where}. Before going on, look closely at {subject.name} to be sure of its badge."
    verdict = f"The badge is {subject.label}, so {subject.name} is the right one. {act}"
    box = _square(_center(subject.box), box_side)
    return Annotation(thoughts=(look, verdict), looks=((0, box),), **given)


def _where(decision: Decision, scene: Scene, subject: SceneObject, gripper: str) -> str:
    """What the gripper is doing and how far it has to go, in words."""
    bowl = next((o for o in scene.objects if o.name == "bowl"), None)
    if bowl is not None and gripper == "closed":
        state, aim, article = f"The gripper holds {subject.name}", bowl, "the "
    else:
        state, aim, article = f"The gripper is {gripper}", subject, ""
    (x, y), (to_x, to_y) = project(decision.proprio), _center(aim.box)
    far = float(np.hypot(x - to_x, y - to_y)) / 1000 * TABLE_SIZE * 100
    return f"{state}, {far:.0f} cm from {article}{aim.name} and {decision.proprio[2] * 100:.0f} cm above the table"
