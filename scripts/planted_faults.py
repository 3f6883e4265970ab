"""Faults that annotators make, planted in honest annotations of the tabletop: one in a copy of an episode.

Each differs from the honest copy only in what its name says, so that the checks can find it by nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from rlvla.types import Annotation, Box, Scene
from wordings import FLIP, Episode, center, plain, scene_of

MAX_COVERAGE = 0.25
"""Share of the object that a box beside it may still cover."""
RUN = (6, 10)
"""Shortest and longest run of decisions with a duplicated thought."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An episode's annotations with one fault."""

    annotations: Mapping[int, Annotation]
    """All of the episode, by decision."""
    touched: tuple[int, ...]
    """Decisions that the fault is in."""
    what: str
    """In words, for who reads the misses."""


def wrong_object(episode: Episode, rng: np.random.Generator) -> Planted:
    """One decision speaks of another object: all of it in half of the trials, else only its thoughts or its subject."""
    index, other = _decision_and_other(episode, rng)
    honest, name = episode.wordings[index].annotation, scene_of(episode.take.decisions[index]).subject
    # The two tasks take turns, hence // 2: each sees each of the parts.
    part = ("all", "thoughts", "all", "subject")[episode.take.index // 2 % 4]
    lie = honest
    if part != "subject":
        lie = replace(lie, thoughts=tuple(_swap(thought, name, other) for thought in lie.thoughts))
    if part != "thoughts":
        lie = replace(lie, subject=_swap(lie.subject, name, other))
    if part == "all":
        lie = replace(lie, subtask=_swap(lie.subtask, name, other))
    return _planted(episode, {index: lie}, f"{part} about {other}, not {name}")


def flipped_gripper_word(episode: Episode, rng: np.random.Generator) -> Planted:
    """One word about the gripper says its opposite: in a quarter of the trials that of its field, else of a thought."""
    if rng.random() < 0.25:
        index = int(rng.integers(len(episode.wordings)))
        honest = episode.annotations[index]
        said, opposite = ("closed", "open") if honest.gripper == "closed" else ("open", "closed")
        return _planted(episode, {index: replace(honest, gripper=opposite)}, f"gripper field: {said} -> {opposite}")
    places = [
        (index, i, k)
        for index, wording in enumerate(episode.wordings)
        for i, thought in enumerate(wording.marked)
        for k in range(len(FLIP.findall(thought)))
    ]
    index, i, k = places[rng.integers(len(places))]
    honest, marked = episode.annotations[index], episode.wordings[index].marked[i]
    said, opposite = FLIP.findall(marked)[k]
    thoughts = (*honest.thoughts[:i], plain(marked, flipped=k), *honest.thoughts[i + 1 :])
    return _planted(episode, {index: replace(honest, thoughts=thoughts)}, f"thought: {said} -> {opposite}")


def box_off_object(episode: Episode, rng: np.random.Generator) -> Planted:
    """The box of a look lies beside its object, or on another one; its size and the words stay."""
    index = int(rng.choice([i for i, annotation in episode.annotations.items() if annotation.looks]))
    honest, scene = episode.annotations[index], scene_of(episode.take.decisions[index])
    ((image, box),) = honest.looks
    moved, where = _move_off(box, scene, rng)
    return _planted(episode, {index: replace(honest, looks=((image, moved),))}, f"box {box} -> {moved}, {where}")


def goal_change(episode: Episode, rng: np.random.Generator) -> Planted:
    """From within a segment on, all annotations speak of another object, as if it had always been the one."""
    segments = [segment for segment in episode.timeline.segments if len(segment) > 1]
    segment = segments[rng.integers(len(segments))]
    start, num = int(rng.integers(segment.start + 1, segment.stop)), len(episode.wordings)
    scene = scene_of(episode.take.decisions[start])
    other = str(rng.choice([o.name for o in scene.objects if o.name not in (scene.subject, "bowl")]))
    lies = {i: _about(episode.annotations[i], scene.subject, other) for i in range(start, num)}
    return _planted(episode, lies, f"from decision {start} on about {other}, not {scene.subject}")


def duplicated_thought(episode: Episode, rng: np.random.Generator) -> Planted | None:
    """One thought stands in each of several decisions; None where the episode is too short.

    It is true at all of them, so that only its repetition gives it away.
    """
    num = len(episode.wordings)
    if num < RUN[0]:
        return None
    length = int(rng.integers(RUN[0], min(RUN[1], num) + 1))
    start = int(rng.integers(num - length + 1))
    run = range(start, start + length)
    lies = {
        i: replace(a, thoughts=(episode.goal,) * len(a.thoughts)) for i, a in episode.annotations.items() if i in run
    }
    return _planted(episode, lies, f"{length} decisions from {start} on think the same")


FAULTS: Mapping[str, Callable[[Episode, np.random.Generator], Planted | None]] = {
    "wrong object": wrong_object,
    "flipped gripper word": flipped_gripper_word,
    "box off the object": box_off_object,
    "goal change": goal_change,
    "duplicated thought": duplicated_thought,
}


def coverage(box: Box, thing: Box) -> float:
    """Share of the thing that the box covers."""
    width = min(box[2], thing[2]) - max(box[0], thing[0])
    height = min(box[3], thing[3]) - max(box[1], thing[1])
    return max(width, 0) * max(height, 0) / ((thing[2] - thing[0]) * (thing[3] - thing[1]))


def _planted(episode: Episode, lies: Mapping[int, Annotation], what: str) -> Planted:
    return Planted(annotations={**episode.annotations, **lies}, touched=tuple(sorted(lies)), what=what)


def _decision_and_other(episode: Episode, rng: np.random.Generator) -> tuple[int, str]:
    """A decision, and an object to speak of there; the bowl only where nothing else is said of it."""
    index = int(rng.integers(len(episode.wordings)))
    annotation, scene = episode.annotations[index], scene_of(episode.take.decisions[index])
    said = " ".join((*annotation.thoughts, annotation.subtask)).lower()
    others = [o.name for o in scene.objects if o.name != scene.subject and not (o.name == "bowl" and "bowl" in said)]
    return index, str(rng.choice(others))


def _about(annotation: Annotation, name: str, other: str) -> Annotation:
    """The same words about another object."""
    return replace(
        annotation,
        thoughts=tuple(_swap(thought, name, other) for thought in annotation.thoughts),
        subtask=_swap(annotation.subtask, name, other),
        subject=_swap(annotation.subject, name, other),
    )


def _swap(text: str, name: str, other: str) -> str:
    """Both names exchanged, so that "pad 1, left of pad 2" speaks of pad 2 and still of two pads."""

    def exchanged(match: re.Match[str]) -> str:
        new = other if match[0].lower() == name else name
        return new.capitalize() if match[0][0].isupper() else new

    return re.sub(rf"\b({re.escape(name)}|{re.escape(other)})\b", exchanged, text, flags=re.IGNORECASE)


def _move_off(box: Box, scene: Scene, rng: np.random.Generator) -> tuple[Box, str]:
    """The box elsewhere in the frame, and where: on another object in half of the cases, else near by."""
    subject = next(o for o in scene.objects if o.name == scene.subject)
    size = np.array([box[2] - box[0], box[3] - box[1]])
    on_others = [(_at(center(o.box), size), f"on {o.name}") for o in scene.objects if o is not subject]
    on_others = [(other, where) for other, where in on_others if coverage(other, subject.box) < MAX_COVERAGE]
    if on_others and rng.random() < 0.5:
        return on_others[rng.integers(len(on_others))]
    while True:
        angle, way = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 2.0)
        moved = _at(center(box) + way * size * np.array([np.cos(angle), np.sin(angle)]), size)
        covered = coverage(moved, subject.box)
        if covered < MAX_COVERAGE:
            return moved, f"covers {covered:.2f} of {subject.name}"


def _at(middle: Iterable[float] | np.ndarray, size: np.ndarray) -> Box:
    """A box of this size around a point, moved into the frame where needed."""
    x, y = (int(v) for v in np.clip(np.round(np.asarray(middle) - size / 2), 0, 1000 - size))
    return x, y, x + int(size[0]), y + int(size[1])
