"""Honest annotations in many words: what `explain` says of a tabletop episode, as models and people would put it.

A pattern is a sentence with three kinds of marks. `[gripper/hand]` is a choice. `{s}` is filled with what is true of
the decision: its subject, another object `{o}`, distances. `<open|closed>` is a word about the gripper and its
opposite, which would be false in this place: the honest text has the first, a planted fault one of the second. Words
whose opposite might also be true ("do not open yet") carry no such mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rlvla.annotation.take import Take
from rlvla.types import Annotation, Box, Decision, Scene, SceneObject, Timeline
from rlvla_envs.tabletop.annotate import explain
from rlvla_envs.tabletop.model import TABLE_SIZE
from rlvla_envs.tabletop.scene import project

Patterns = Mapping[str, tuple[str, ...]]
NEAR_CM, LOW_CM = 2.5, 4.0
"""The hand counts as above its aim, and as down at the table, below these."""
SITUATIONS = {
    "move": ("approach", "hover"), "go": ("descend", "low"), "grasp": ("grasp", "grasp"), "hold": ("hold", "hold"),
    "lift": ("lifted", "lift"), "carry": ("carry", "over"), "release": ("release", "release"),
    "press": ("press", "press"),
}  # fmt: skip
"""First word of the expert's intention -> situation before the hand has come near its aim, or low, and after."""
CHOICE, SLOT, FLIP = re.compile(r"\[([^][]*)\]"), re.compile(r"\{(\w+)\}"), re.compile(r"<([^|>]*)\|([^>]*)>")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Patterns of one split, or of a part of it."""

    subtask: Patterns
    """By grip: "closed" on nothing (press), "open", "held"."""
    state: Patterns
    """By grip."""
    act: Patterns
    """By situation; each names the subject."""
    plan: Patterns
    """What comes later, by grip."""
    goal: Patterns
    """True from the first decision to the last, by task."""
    look: tuple[str, ...]
    before: Patterns
    """What the look comes before, by situation."""
    verdict: tuple[str, ...]

    def __add__(self, other: Pool) -> Pool:
        """The patterns of both."""
        values: dict[str, Any] = {f.name: getattr(other, f.name) for f in fields(self)}
        for name, value in values.items():
            mine = getattr(self, name)
            is_flat = isinstance(mine, tuple)
            values[name] = mine + value if is_flat else {key: texts + value[key] for key, texts in mine.items()}
        return Pool(**values)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """One honest annotation, and how it could be turned into a lie about the gripper."""

    annotation: Annotation
    marked: tuple[str, ...]
    """The thoughts, with marks for words and their opposites."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A take with an honest annotation of every decision."""

    take: Take
    timeline: Timeline
    wordings: tuple[Wording, ...]
    goal: str
    """A thought that is true at every decision."""

    @property
    def annotations(self) -> dict[int, Annotation]:
        """By decision."""
        return {i: wording.annotation for i, wording in enumerate(self.wordings)}


def reword(take: Take, timeline: Timeline, pool: Pool, rng: np.random.Generator) -> Episode:
    """Say of each decision what `explain` says, in words of the pool."""
    progress = _progress(len(take.decisions), rng)
    has_fixed_subtask = rng.random() < 0.5
    wordings: list[Wording] = []
    for i, decision in enumerate(take.decisions):
        speaker = Speaker(decision, timeline, i, pool, rng)
        marked = speaker.thoughts(timeline.is_key[i])
        starts_segment = i == timeline.segment(i)[0]
        subtask = plain(speaker.say(pool.subtask[speaker.grip], marks_out=True))
        if has_fixed_subtask and not starts_segment:
            subtask = wordings[-1].annotation.subtask
        base = explain(take.decisions, i, timeline=timeline, rng=rng)
        annotation = replace(
            base,
            thoughts=tuple(plain(thought) for thought in marked),
            looks=tuple((image, _around(speaker.subject.box, rng)) for image, _ in base.looks),
            subtask=subtask,
            subject=str(rng.choice([base.subject] * 8 + [base.subject.capitalize(), f"the {base.subject}"])),
            progress=progress[i],
        )
        wordings.append(Wording(annotation=annotation, marked=marked))
    first = Speaker(take.decisions[0], timeline, 0, pool, rng)
    goal = plain(_capitalised(first.say(pool.goal[first.task])))
    return Episode(take=take, timeline=timeline, wordings=tuple(wordings), goal=goal)


def plain(marked: str, flipped: int | None = None) -> str:
    """The text without marks: honest, but for the mark `flipped`, counted from 0."""
    parts = FLIP.split(marked)
    for number in range(len(parts) // 3):
        parts[number * 3 + 1 : number * 3 + 3] = [parts[number * 3 + 1 + (number == flipped)], ""]
    return "".join(parts)


class Speaker:
    """What is true of one decision, and how to say it."""

    def __init__(
        self, decision: Decision, timeline: Timeline, index: int, pool: Pool, rng: np.random.Generator
    ) -> None:
        """Reads the situation off the privileged scene."""
        self._pool, self._rng = pool, rng
        self._decision, self._scene = decision, scene_of(decision)
        self.subject = next(o for o in self._scene.objects if o.name == self._scene.subject)
        self._others = [o for o in self._scene.objects if o is not self.subject and o.name != "bowl"]
        bowl = next((o for o in self._scene.objects if o.name == "bowl"), None)
        self.task = "press" if bowl is None else "pick"
        self.grip = "closed" if bowl is None else "held" if timeline.is_closed[index] else "open"
        self._hand = np.array(project(decision.proprio))
        self._aim = center(self.subject.box if bowl is None or self.grip == "open" else bowl.box)
        self._far_cm = float(np.linalg.norm(self._hand - self._aim)) / 1000 * TABLE_SIZE * 100
        self._high_cm = float(decision.proprio[2]) * 100
        verb = self._scene.intention.split()[0]
        is_there = self._high_cm < LOW_CM if verb in ("go", "lift") else self._far_cm < NEAR_CM
        situation = SITUATIONS[verb][is_there]
        self.situation = (
            {"approach": "reach", "hover": "ready"}.get(situation, situation) if bowl is None else situation
        )

    def thoughts(self, is_key: bool) -> tuple[str, ...]:
        """With marks; two at a key frame, before and after the look."""
        act = self.say(self._pool.act[self.situation])
        state = [self.say(self._pool.state[self.grip])] if self._rng.random() < 0.6 else []
        goal = [self.say(self._pool.goal[self.task])] if self._rng.random() < 0.1 else []
        has_plan = self.situation not in ("press", "release") and self._rng.random() < 0.3
        plan = [self.say(self._pool.plan[self.grip])] if has_plan else []
        if not is_key:
            return (self._finish([*goal, *state, act, *plan]),)
        look = self.say(self._pool.look)
        verdict = self.say(self._pool.verdict)
        return self._finish([*state, look]), self._finish([verdict, *goal, act, *plan])

    def say(self, patterns: Sequence[str], marks_out: bool = False) -> str:
        """One of the patterns, filled; those that need what is not there are left out."""
        facts = self._facts()
        patterns = [p for p in patterns if all(slot in facts for slot in SLOT.findall(p))]
        text = str(self._rng.choice(patterns))
        while SLOT.search(text) or CHOICE.search(text):
            text = CHOICE.sub(lambda match: str(self._rng.choice(match[1].split("/"))), text)
            text = SLOT.sub(lambda match: str(self._rng.choice(facts[match[1]])), text)
        return plain(text) if marks_out else text

    def _facts(self) -> dict[str, Sequence[str]]:
        """Slot -> ways to fill it; only what is true now."""
        name, other = self.subject.name, self._others[self._rng.integers(len(self._others))]
        far, high = f"{self._far_cm:.0f}", f"{max(self._high_cm, 1):.0f}"
        facts: dict[str, Sequence[str]] = {
            "s": [name] * 8 + [name.capitalize(), f"the {name}"],
            "o": [other.name] * 5 + [other.name.capitalize(), f"the {other.name}"],
            "label": [self.subject.label],
            "o_label": [other.label],
            "noun": [name.split()[0]],
            "high": [f"{high} cm", f"about {high} cm", f"{high} centimetres"],
        }
        if self.situation in self._pool.before:
            facts["before"] = self._pool.before[self.situation]
        if self._far_cm >= NEAR_CM:
            facts["far"] = [f"{far} cm", f"about {far} cm", f"roughly {far} cm", f"{far} centimetres"]
        if near := _directions(self.subject, other):
            facts["near"] = near
        if past := [o.name for o in self._others if self._is_on_the_way(o)]:
            facts["past"] = past
        return facts

    def _is_on_the_way(self, thing: SceneObject) -> bool:
        """Whether the straight way from the hand to its aim leads along the object."""
        way, to = self._aim - self._hand, center(thing.box) - self._hand
        share = float(way @ to) / max(float(way @ way), 1.0)
        return 0.2 < share < 0.8 and float(np.linalg.norm(to - share * way)) < 150

    def _finish(self, sentences: Sequence[str]) -> str:
        """A thought of these sentences, now and then written carelessly."""
        text = str(self._rng.choice([". ", ". ", ". ", "; "])).join(sentence.rstrip(".") for sentence in sentences)
        style = self._rng.random()
        if style < 0.08:
            return text.lower()
        return text if style < 0.16 else _capitalised(f"{text}.")


def scene_of(decision: Decision) -> Scene:
    """The privileged scene, which the tabletop's expert records."""
    assert decision.scene is not None
    return decision.scene


def center(box: Box) -> np.ndarray:
    """[2] float, thousandths of the frame."""
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2


def _capitalised(marked: str) -> str:
    """With a capital at the start of each sentence and none behind a semicolon, also inside marks."""
    for start, case in ((r"(^|[.!?] )", str.upper), (r"(; )(?!I\b)", str.lower)):
        marked = re.sub(start + r"(\w)", lambda m, case=case: m[1] + case(m[2]), marked)
        in_mark = start + r"<(\w)([^|]*)\|(\w)"
        marked = re.sub(in_mark, lambda m, case=case: f"{m[1]}<{case(m[2])}{m[3]}|{case(m[4])}", marked)
    return marked


def _directions(thing: SceneObject, other: SceneObject) -> list[str]:
    """Where the one lies as seen from the other, in the image."""
    right, down = center(thing.box) - center(other.box)
    words = [("to the left of", right < -100), ("right of", right > 100), ("further up than", down < -100)]
    return [f"{word} {other.name}" for word, is_so in [*words, ("below", down > 100)] if is_so]


def _around(box: Box, rng: np.random.Generator) -> Box:
    """A box of ordinary size with all of the object somewhere in it."""
    corner, end = np.array(box[:2]), np.array(box[2:])
    size = rng.integers(90, 220, 2)
    start = np.clip(rng.integers(end - size, corner + 1), 0, 1000 - size)
    x, y = (int(v) for v in start)
    return x, y, x + int(size[0]), y + int(size[1])


def _progress(num: int, rng: np.random.Generator) -> list[float]:
    """Of each decision: rises unevenly, often rounded so far that neighbours are equal, and never falls."""
    shares = np.cumsum(rng.uniform(0.3, 1.7, num))
    start = shares[0] * rng.random()
    values = (shares - start) / (shares[-1] - start) * rng.uniform(0.9, 1.0)
    return [float(v) for v in np.round(values, int(rng.integers(1, 4)))]
