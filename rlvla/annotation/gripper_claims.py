"""What a text claims of the gripper, and which of these claims the recording contradicts.

    "the gripper is still open, move down, then close it around the bowl"
         state: open                            action: close

States must hold before the decision. Of what the gripper is going to do only the next move counts, for plans run on:
"grasp the bowl, then carry it to the plate and release it".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlvla.annotation import words as w
from rlvla.annotation.gripper_grasps import GRASP_READERS
from rlvla.annotation.gripper_jaws import JAW_READERS
from rlvla.annotation.gripper_reading import PAD, Context, Kind, Reader, Reading, is_supposed
from rlvla.annotation.names import name_words
from rlvla.types import Switch

_READERS: Mapping[str, tuple[Reader, ...]] = {
    word: (*JAW_READERS.get(word, ()), *GRASP_READERS.get(word, ())) for word in {**JAW_READERS, **GRASP_READERS}
}
_MAX_WORDS = 400
"""Read of a text, far more than `CheckConfig.num_words` lets pass."""
_IF = w.group("if unless")
_MEANS = w.group("by with : so therefore thus hence")
_WONDER = w.group("decide decides tell see determine determines check judge sure know")
_NOT = w.group("not without never cannot")
_TRANSPORT = w.group("lift raise carry bring transport")
_THERE = w.group("up over across")
_AT_LAST = (("in", "the", "end"), ("at", "the", "end"), ("at", "last"))
_FULL_STOPS = w.group(". ! ?")
_RECITED = 5
"""Instructions of more words than this tell more than one decision, and are recited."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A reading, and where in the text it stands."""

    kind: Kind
    closed: bool
    """Closed or closing."""
    weight: int
    """See `Reading`."""
    step: int
    """Of the plan: how many words like "then" or "lift" come before it."""
    sentence: int
    is_jaw: bool
    """Said of the gripper ("close the fingers") rather than of what it takes or leaves ("grasp the bowl")."""
    is_far: bool
    """Whether the sentence moves something elsewhere first: "then up, over to the bowl and release"."""
    is_lift: bool
    """Read "pick up" may still be said while what was grasped is lifted."""
    before: str
    """The word before."""
    words: str
    """To quote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """What the gripper really does."""

    is_closed: bool
    """Before the decision."""
    now: Switch
    """In the decision."""
    ahead: Switch
    """In the decision, or else next."""
    holds: bool
    """Whether it has closed in this take, most likely on something."""
    lifts: bool
    """Whether it has closed just before, or never opens again: what it holds is being lifted."""


def claims(text: str, subject: str = "", instruction: str = "") -> tuple[Claim, ...]:
    """What a text claims, in its order.

    Args:
        text: any.
        subject: what the annotation is about; "released" said of something else says nothing of the gripper's state.
        instruction: of the task; where a long one is recited it claims nothing.
    """
    tokens = w.tokens(text)[:_MAX_WORDS]
    if _READERS.keys().isdisjoint(tokens):
        return ()
    about = frozenset(name_words(subject))
    padding = ["."] * PAD
    tokens = [*padding, *_without(tokens, w.tokens(instruction)), *padding]
    return tuple(_claims(Context(tokens, about, not about.isdisjoint(w.FURNITURE))))


def _without(tokens: tuple[str, ...], phrase: tuple[str, ...]) -> tuple[str, ...]:
    """A text without a long instruction that it recites."""
    while phrase and phrase[-1] in w.STOPS:
        phrase = phrase[:-1]
    at = 0
    while len(phrase) > _RECITED and at <= len(tokens) - len(phrase):
        if tokens[at] == phrase[0] and tokens[at : at + len(phrase)] == phrase:
            tokens = (*tokens[:at], "_", *tokens[at + len(phrase) :])
        at += 1
    return tokens


def _claims(context: Context) -> Iterator[Claim]:
    tokens, step, sentence, end = context.tokens, 0, 0, 0
    for at in range(PAD, len(tokens) - PAD):
        token = tokens[at]
        step, before = step + (token in w.SEQUENCE), step
        sentence += token in w.STOPS
        if token not in _READERS or at < end:
            continue
        reading = next((found for reader in _READERS[token] if (found := reader(context, at))), None)
        if reading is not None and reading.kind in ("action", "either", "passive"):
            reading = _in_context(tokens, at, reading)
        if reading is None:
            continue
        end = reading.end
        yield Claim(
            kind=reading.kind,
            closed=reading.closed,
            weight=reading.weight,
            step=before,
            sentence=sentence,
            is_jaw=token in JAW_READERS,
            is_far=_is_far(tokens, at),
            is_lift=token.startswith("pick"),
            before=tokens[at - 1],
            words=" ".join(tokens[max(reading.start, PAD) : max(end, at + 1)]).strip(" .,;:"),
        )


def _is_far(tokens: Sequence[str], at: int) -> bool:
    """Whether a word of transport stands before a word, in its sentence."""
    start = at
    while start > PAD and tokens[start - 1] not in _FULL_STOPS:
        start -= 1
    words = tokens[start:at]
    return not _TRANSPORT.isdisjoint(words) or ("then" in words and not _THERE.isdisjoint(words))


def _in_context(tokens: Sequence[str], at: int, reading: Reading) -> Reading | None:
    """An action that is neither put off nor part of the task as a whole; denied, it may tell the state."""
    start = at
    while at - start < PAD - 1 and tokens[start - 1] not in w.STOPS:
        start -= 1
        if tokens[start] in w.TASK and _tells(tokens, start + 1):
            return None
    while not w.BREAKS.isdisjoint(tokens[start:at]):
        start += 1
    clause = [*tokens[start:at], *itertools.takewhile(lambda token: token not in w.BREAKS, tokens[at : at + PAD])]
    is_put_off = not w.DEFERRAL.isdisjoint(clause) or any(_holds(clause, phrase) for phrase in _AT_LAST)
    if is_put_off or tokens[at - 1] == "than" or _is_conditional(tokens, start, at):
        return None
    if is_supposed(tokens, at):
        reading = reading._replace(weight=1)
    before = tokens[max(start, at - 5) : at]
    if w.NEGATION.isdisjoint(before) or not w.PENDING.isdisjoint(clause):
        return reading
    is_told = tokens[at] in JAW_READERS and not _NOT.isdisjoint(before)  # "do not open the gripper": it is closed
    return Reading("state", not reading.closed, reading.start, reading.end) if is_told else None


def _holds(words: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether a phrase stands among words."""
    return any(tuple(words[at : at + len(phrase)]) == phrase for at in range(len(words)))


def _is_conditional(tokens: Sequence[str], start: int, at: int) -> bool:
    """Whether a clause says "if", and not as in "decides if"."""
    return any(token in _IF and tokens[back - 1] not in _WONDER for back, token in enumerate(tokens[start:at], start))


def _tells(tokens: Sequence[str], at: int) -> bool:
    """Whether "to grasp ..." follows, rather than "is nearly complete"."""
    return tokens[at] in w.TELLS and (tokens[at] not in ("is", "was", "s") or tokens[at + 1] in ("to", ":"))


def contradiction(found: Sequence[Claim], motion: Motion) -> Claim | None:
    """The first claim of a text that what the gripper does contradicts, if any."""
    first: Claim | None = None
    told: Claim | None = None
    done = [claim for claim in found if claim.kind == "done"]
    for claim in found:
        state_agrees = claim.closed == motion.is_closed
        agrees = True
        if claim.kind == "state":
            agrees = state_agrees or not _is_of_now(claim, told)
        elif claim.kind == "done":
            agrees = state_agrees or claim is not done[-1] or first is not None or _is_history(claim, found, motion)
        elif claim.kind == "passive":
            agrees = state_agrees or _moves(claim) == motion.now or first is not None
        elif _is_no_move(claim, first, found, motion):
            continue
        elif first is None:
            first, told = claim, None if claim.weight else claim
            is_beyond = claim.is_far and not claim.closed and not motion.is_closed  # a plan that leaves out the grasp
            agrees = _moves(claim) == motion.ahead or is_beyond
            agrees = agrees or (claim.is_lift and motion.is_closed and motion.lifts)
        elif claim.closed != first.closed:
            agrees = not _is_same_move(first, claim, motion)
        if not agrees:
            return claim
    return None


def _moves(claim: Claim) -> Switch:
    return "close" if claim.closed else "open"


def _is_of_now(claim: Claim, told: Claim | None) -> bool:
    """Whether a state is that before the decision, rather than the outcome of an action told before."""
    if told is None or claim.weight == 2:
        return True
    if claim.weight == 3:
        return not told.is_jaw and claim.step == told.step
    return claim.weight == 1 and claim.sentence > told.sentence


def _is_history(claim: Claim, found: Sequence[Claim], motion: Motion) -> bool:
    """Whether "has been released" is said of who knows what, and a later sentence says how the gripper is now."""
    states = [one for one in found if one.kind == "state" and one.sentence > claim.sentence]
    return not claim.weight and any(one.closed == motion.is_closed for one in states)


def _is_no_move(claim: Claim, first: Claim | None, found: Sequence[Claim], motion: Motion) -> bool:
    """Whether "grasping" is a state that holds, or "to grasp the bowl, open the gripper" what it opens for."""
    if claim.kind == "either" and claim.closed == motion.is_closed:
        is_aim = first is not None and first.is_jaw and claim.before == "to"
        is_all = motion.now == "open" and all(one.closed or one.kind in ("state", "done") for one in found)
        return not is_aim and not (claim.closed and is_all)
    is_free = first is None and claim.closed and claim.before == "to" and not motion.holds
    return is_free and any(one.is_jaw and not one.closed and one.sentence == claim.sentence for one in found)


def _is_same_move(first: Claim, claim: Claim, motion: Motion) -> bool:
    """Whether opposite actions are told of one move ("close the fingers to release it"), not of one after the other."""
    if claim.step != first.step or first.is_jaw == claim.is_jaw:
        return False
    if first.is_jaw:
        return first.closed or motion.holds  # an empty gripper may well open in order to grasp
    is_means = claim.before in _MEANS or first.before == "to" or claim.words.split()[0].endswith("ing")
    return claim.before != "and" and (is_means or claim.sentence > first.sentence)
