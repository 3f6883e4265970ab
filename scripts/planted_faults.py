"""Faults that annotators make, planted in the fields of the tabletop's honest annotations: one in a copy of an episode.

Each differs from the honest copy only in what its name says, so that the checks can find it by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rlvla.annotation.take import Take
from rlvla.config import CheckConfig
from rlvla.types import Annotation, Box, Timeline
from rlvla_envs.spec import scene_of

MAX_COVERAGE = 0.25
"""Share of the object that a box beside it may still cover."""


class Episode(NamedTuple):
    """A take with an honest annotation of each decision."""

    take: Take
    timeline: Timeline
    honest: dict[int, Annotation]


Lies = dict[int, Annotation]
"""The decisions that a fault is in, and what is said there instead."""


def wrong_subject(episode: Episode, rng: np.random.Generator) -> Lies:
    """One decision is about another object of the scene."""
    index = int(rng.integers(len(episode.honest)))
    return {index: replace(episode.honest[index], subject=_other(episode, index, rng))}


def flipped_gripper(episode: Episode, rng: np.random.Generator) -> Lies:
    """One decision has the gripper's state wrong, or what the gripper does next."""
    index = int(rng.integers(len(episode.honest)))
    honest = episode.honest[index]
    if rng.random() < 0.5:
        return {index: replace(honest, gripper="open" if honest.gripper == "closed" else "closed")}
    others = [coming for coming in ("open", "close", "stay") if coming != honest.next_gripper]
    return {index: replace(honest, next_gripper=str(rng.choice(others)))}


def box_off_object(episode: Episode, rng: np.random.Generator) -> Lies:
    """The box of a look lies elsewhere; its size stays."""
    index = int(rng.choice([i for i, annotation in episode.honest.items() if annotation.looks]))
    honest, scene = episode.honest[index], scene_of(episode.take.decisions[index])
    ((image, (x1, y1, x2, y2)),) = honest.looks
    subject = next(o.box for o in scene.objects if o.name == scene.subject)
    while True:
        x, y = (int(rng.integers(1001 - side)) for side in (x2 - x1, y2 - y1))
        box = (x, y, x + x2 - x1, y + y2 - y1)
        if coverage(box, subject) < MAX_COVERAGE:
            return {index: replace(honest, looks=((image, box),))}


def goal_change(episode: Episode, rng: np.random.Generator) -> Lies:
    """From within a sub-task on, all decisions are about another object, as if it had always been the one."""
    segments = [segment for segment in episode.timeline.segments if len(segment) > 1]
    segment = segments[rng.integers(len(segments))]
    start = int(rng.integers(segment.start + 1, segment.stop))
    other = _other(episode, start, rng)
    return {i: replace(episode.honest[i], subject=other) for i in range(start, len(episode.honest))}


def repeated_thought(episode: Episode, rng: np.random.Generator) -> Lies:
    """Several decisions in a row conclude the same, one more than may."""
    length = CheckConfig().max_repetition + 1
    start = int(rng.integers(len(episode.honest) - length + 1))
    thought = episode.honest[start].thoughts[-1]
    run = ((i, episode.honest[i]) for i in range(start, start + length))
    return {i: replace(honest, thoughts=(*honest.thoughts[:-1], thought)) for i, honest in run}


FAULTS: Mapping[str, Callable[[Episode, np.random.Generator], Lies]] = {
    "wrong subject": wrong_subject,
    "flipped gripper": flipped_gripper,
    "box off the object": box_off_object,
    "goal change": goal_change,
    "repeated thought": repeated_thought,
}


def coverage(box: Box, thing: Box) -> float:
    """Share of the thing that the box covers."""
    width = min(box[2], thing[2]) - max(box[0], thing[0])
    height = min(box[3], thing[3]) - max(box[1], thing[1])
    return max(width, 0) * max(height, 0) / ((thing[2] - thing[0]) * (thing[3] - thing[1]))


def _other(episode: Episode, index: int, rng: np.random.Generator) -> str:
    scene = scene_of(episode.take.decisions[index])
    return str(rng.choice([o.name for o in scene.objects if o.name != episode.honest[index].subject]))
