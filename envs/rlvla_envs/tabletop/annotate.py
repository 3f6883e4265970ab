"""Templated embodied chain-of-thought for the tabletop expert, from the privileged scene of each decision.

It is terse, for policies of a million parameters: coordinates instead of words. It is imperfect on purpose, as
annotators are: it often acts before it has looked closely enough, so that the cold start teaches how to look, and
leaves it to GRPO to find out when it pays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvla.types import Annotation, Box, Decision, SceneObject, Timeline
from rlvla_envs.spec import scene_of


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


def _point(info: SceneObject, step: int) -> tuple[int, int]:
    """The object's centre on the grid."""
    x, y = (info.box[0] + info.box[2]) // 2, (info.box[1] + info.box[3]) // 2
    return round(x / step) * step, round(y / step) * step


def _square(center: tuple[int, int], side: int) -> Box:
    """The zoom box around a point, moved into the frame where needed."""
    x, y = (min(max(v - side // 2, 0), 1000 - side) for v in center)
    return x, y, x + side, y + side
