"""What it takes to read a word of grippers: the text around it, and what it may be read as.

A reader of English good enough for short thoughts about a robot, not a parser: a word that speaks of grippers is judged
by its neighbours, and what remains unclear claims nothing, for an honest thought refused costs more than a false one
missed. `gripper_jaws.py` and `gripper_grasps.py` hold the readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rlvla.annotation import words as w

Kind = Literal["state", "done", "passive", "either", "action"]
"""state: how the gripper is. done: what it did last ("has grasped"). passive: a state, or what happens now ("is
grasped"). either: a state, or what comes next ("grasping"). action: what comes next."""


class Reading(NamedTuple):
    """What a word was read as."""

    kind: Kind
    closed: bool
    """Closed or closing."""
    start: int
    """Of the words that say so."""
    end: int
    """Exclusive."""
    weight: int = 0
    """Of a state: 3 where it is an attribute ("the open gripper"), 2 where it says "still", 1 where it is a clause of
    its own, 0 where it hangs on another. Of an action: 1 where states told behind it are still those before it. Of what
    is done: 1 where it is said of the subject."""


class Context(NamedTuple):
    """What readers look at."""

    tokens: Sequence[str]
    """Of a text, with PAD full stops at either end, so that nobody need watch the ends."""
    subject: frozenset[str]
    """Words of the object that the annotation is about; empty where it names none."""
    is_articulated: bool
    """Whether that object is a drawer or a door, so that a lone "close it" may speak of it."""


Reader = Callable[[Context, int], Reading | None]

PAD = 16
"""Full stops around a text."""
AFTER = w.group("after upon having since")
PERFECT = w.group("have has had having")
VERB_BEFORE = w.group("so therefore thus hence to then will should must can please now could may would shall not")
"""Behind these an "open" is a verb."""
BEFORE_GERUND = w.group("before for start starts begin begins of about toward towards attempt attempting ready prior")
_SENTENCE = w.STOPS | w.GRIPPER
_CONCLUSION = w.group("therefore thus then soon immediately simply to will")


def is_supposed(tokens: Sequence[str], at: int) -> bool:
    """Whether a clause is a condition or a purpose: "once the gripper is closed"."""
    for back in range(1, 9):
        token = tokens[at - back]
        if token in w.BREAKS:
            return False
        following = tokens[at - back + 1]
        if token in w.SUBORDINATORS or (token == "so" and following in ("that", "as")):
            return following != "then" and not following.endswith("ing")  # "until then", "after closing it"
    return False


def left(tokens: Sequence[str], at: int, links: frozenset[str] = w.LINKS) -> int:
    """Where the subject of what is said at a word stands, in front of auxiliaries and adverbs."""
    start = at - 1
    while at - start < 9 and tokens[start] in links:
        start -= 1
    if tokens[start] in (":", "="):  # "Gripper: open", "gripper state: open"
        label = start - 1 - (tokens[start - 1] in w.STATE_NOUNS)
        return label if tokens[label] in w.GRIPPER and tokens[label - 1] in w.BREAKS else start
    is_aside = tokens[start] == "," and _CONCLUSION.isdisjoint(tokens[start:at])  # "the gripper, still open,"
    return start - 1 if is_aside and tokens[start - 1] in w.GRIPPER else start


def is_gripper(context: Context, at: int) -> bool:
    """Whether a noun or pronoun means the gripper."""
    tokens = context.tokens
    if tokens[at] in w.PRONOUNS:
        last = next((token for token in reversed(tokens[:at]) if token in w.GRIPPER or token in w.FURNITURE), "")
        return last in w.GRIPPER and not context.is_articulated
    if tokens[at] in ("which", "that"):
        return tokens[at - 1 - (tokens[at - 1] == ",")] in w.GRIPPER
    return tokens[at] in w.GRIPPER


def is_furnished(context: Context, at: int) -> bool:
    """Whether the sentence may be about a drawer or a door."""
    tokens = context.tokens
    start = end = at
    while start > PAD and tokens[start] not in w.STOPS:
        start -= 1
    while tokens[end] not in w.STOPS:
        end += 1
    return context.is_articulated or not w.FURNITURE.isdisjoint(tokens[start:end])


def gripper_after(tokens: Sequence[str], at: int) -> int:
    """Where the gripper stands that a verb or adjective is about; 0 where it is about something else."""
    end = at + 1
    while end - at < 6 and tokens[end] in w.FILLERS:
        end += 1
    return end if tokens[end] in w.GRIPPER else 0


def gripper_before(tokens: Sequence[str], at: int) -> int:
    """Where the sentence so far speaks of the gripper last; 0 where it does not."""
    back = at - 1
    while back >= PAD and tokens[back] not in _SENTENCE:
        back -= 1
    return back if tokens[back] in w.GRIPPER else 0
