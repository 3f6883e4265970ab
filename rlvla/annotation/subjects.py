"""Checks against the scene that a simulator knows: which object an annotation is about, and whether it looks there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlvla.annotation import names as n
from rlvla.annotation import words as w
from rlvla.annotation.case import Case, area, quote
from rlvla.config import CheckConfig
from rlvla.types import Box, SceneObject

_MAX_WORDS = 400
"""Read of a text."""


def check_subject(case: Case) -> Iterator[str]:
    """The object named is in the scene and is what the sub-task is about; so are the words."""
    scene, said = case.decision.scene, case.annotation.subject
    if scene is None:
        return
    names, wanted = [item.name for item in scene.objects], _subject_of_segment(case)
    found = n.find_name(said, filter(None, [*names, wanted]))
    if not n.name_words(said):
        if wanted:
            yield f"the subject is missing: this sub-task is about {quote(wanted)}"
    elif not found:
        hint = quote(wanted) if wanted else "one of " + ", ".join(map(quote, names))
        yield f"the subject {quote(said)} names no object of the scene, or several: wanted {hint}"
    elif wanted and not n.same_name(found, wanted):
        yield f"the subject is {quote(said)}, but this sub-task is about {quote(wanted)}"
    if wanted and (other := _misplaced(case, wanted, names)):
        yield f"the words are about {quote(other)}, but this sub-task is about {quote(wanted)}"


def _subject_of_segment(case: Case) -> str:
    """That of its last decision that has one."""
    scenes = (case.take.decisions[index].scene for index in reversed(case.timeline.segment(case.index)))
    return next((scene.subject for scene in scenes if scene is not None and scene.subject), "")


def _misplaced(case: Case, wanted: str, names: Sequence[str]) -> str:
    """Another object that the words are about instead, or empty.

    The first thought and the sub-task together speak of the wanted one, or else of none but places to go to; and no
    thought handles another without speaking of the wanted one.
    """
    annotation, is_closed = case.annotation, case.timeline.is_closed[case.index]
    speeches = [_Speech.read(text, wanted, names) for text in (*annotation.thoughts, annotation.subtask)]
    opening = [speeches[0], speeches[-1]]
    if not any(speech.is_to_the_point for speech in opening):
        for speech in opening:
            if other := speech.topic(is_closed=is_closed):
                return other
    handled = next((s.handled for s in speeches[:-1] if s.handled and not s.is_to_the_point), "")
    return handled or _rival(case, wanted, names)


def _rival(case: Case, wanted: str, names: Sequence[str]) -> str:
    """An object that the thoughts mention oftener than the wanted one, and the instruction not at all; or empty."""
    tokens = w.tokens(" . ".join(case.annotation.thoughts))[:_MAX_WORDS]
    own = frozenset(n.name_words(wanted))
    told = frozenset(n.name_words(case.decision.instruction))
    counts = Counter(
        wanted if one.names == {wanted} or (wanted in one.names and not one.is_full) else min(one.names)
        for one in n.mentions(tokens, frozenset((*names, wanted)))
        if (one.is_full or wanted in one.names) and _role(tokens, one) != "away"
    )
    rivals = [name for name in counts if name != wanted and not set(n.name_words(name)) <= told | own]
    most = max(rivals, key=lambda name: counts[name], default="")
    return most if counts[most] > counts[wanted] and not _starts_with_pronoun(case, counts[wanted]) else ""


def _starts_with_pronoun(case: Case, num_named: int) -> bool:
    """Whether "it" may stand for the wanted object, which is named nowhere."""
    return not num_named and not w.THINGS.isdisjoint(w.tokens(case.annotation.thoughts[0])[:4])


class _Speech(NamedTuple):
    """What a text says of the objects of a scene."""

    is_to_the_point: bool
    """Whether it mentions the wanted one."""
    others: tuple[str, ...]
    """What it mentions besides, not merely as a place."""
    places: tuple[str, ...]
    """What it mentions as a place to go to."""
    handled: str
    """The first of `others` that something is done to, or empty."""
    has_pronoun: bool
    """Whether "it" stands in front of all others, hence for the wanted one."""

    @classmethod
    def read(cls, text: str, wanted: str, names: Sequence[str]) -> _Speech:
        tokens = w.tokens(text)[:_MAX_WORDS]
        own = n.name_words(wanted)
        found = n.mentions(tokens, frozenset((*names, wanted)))
        about = [one for one in found if wanted in one.names or one.words <= set(own)]
        others = [
            one for one in found if one not in about and (one.is_full or own[-1:] != n.name_words(min(one.names))[-1:])
        ]
        kinds = [(_role(tokens, one), min(one.names)) for one in others]
        start = others[0].start if others else len(tokens)
        return cls(
            is_to_the_point=bool(about),
            others=tuple(name for role, name in kinds if role in ("handled", "other")),
            places=tuple(name for role, name in kinds if role == "place"),
            handled=next((name for role, name in kinds if role == "handled"), ""),
            has_pronoun=not w.THINGS.isdisjoint(tokens[:start]),
        )

    def topic(self, *, is_closed: bool) -> str:
        """What it is about; with something in the gripper, or with "it", places are where that goes."""
        if self.has_pronoun:
            return self.handled
        return next(iter(self.others if is_closed else (*self.others, *self.places)), "")


def _role(tokens: Sequence[str], mention: n.Mention) -> str:
    """handled, place, away or other: how a text mentions an object."""
    at = mention.start - 1
    while at >= 0 and tokens[at] in w.DETERMINERS:
        at -= 1
    word, before = (tokens[at] if at >= 0 else ""), (tokens[at - 1] if at >= 1 else "")
    if word in w.HANDLING or (word in ("up", "down", "go") and before in w.HANDLING):
        return "handled"
    if word in ("on", "onto", "around", "of") and (before in w.ONTO or (before, word) == ("go", "of")):
        return "handled"
    return "away" if word in w.AWAY else "place" if word in w.PLACES else "other"


def check_grounding(case: Case) -> Iterator[str]:
    """Looks show the subject; boxes are known of the first picture alone."""
    scene = case.decision.scene
    looks = [(number, box) for number, (image, box) in enumerate(case.annotation.looks, 1) if image == 0]
    if scene is None or not looks:
        return
    said = case.annotation.subject
    name = n.find_name(said, [item.name for item in scene.objects])
    if name:
        item = next(item for item in scene.objects if item.name == name)
        for number, box in looks:
            yield from _misses(f"the box {list(box)} of look {number}", box, item, case.cfg)
    elif not n.same_name(said, _subject_of_segment(case)):
        yield f"look {looks[0][0]} is at {quote(said)}, which names no object of the scene, or several"


def _misses(where: str, box: Box, item: SceneObject, cfg: CheckConfig) -> Iterator[str]:
    """What is wrong with a box around an object; nothing where the picture does not show it."""
    if not (size := area(item.box)):
        return
    shown = (max(box[0], item.box[0]), max(box[1], item.box[1]), min(box[2], item.box[2]), min(box[3], item.box[3]))
    if (share := area(shown) / size) < cfg.containment:
        yield f"{where} shows {share:.0%} of the {item.name}: at least {cfg.containment:.0%} are wanted"
    if (spread := area(box) / size) > cfg.spread:
        yield f"{where} is {spread:.0f} times as large as the {item.name}: at most {cfg.spread:g} times are wanted"
