"""Reading words of the gripper itself: "the gripper is open", "open the fingers", "then close around the bowl"."""

from __future__ import annotations

from collections.abc import Sequence

from rlvla.annotation import words as w
from rlvla.annotation.gripper_reading import (
    AFTER,
    PAD,
    PERFECT,
    VERB_BEFORE,
    Context,
    Reader,
    Reading,
    gripper_after,
    gripper_before,
    is_furnished,
    is_gripper,
    is_supposed,
    left,
)

_START = VERB_BEFORE | w.BREAKS | w.group("and start starts begin begins or but")
_ENDS = w.BREAKS | w.group(
    "and now firmly gently tightly slowly so until here there yet before fully securely once when as"
)
_NEAR = w.group("""is are am be very so too more quite getting gets get come comes coming stay stays s as how enough
    draws draw drawing sits sit fairly pretty really remains""")
"""Behind these "close" says how far it is."""
_AROUND = w.group("around onto upon on over about against across in")
_MORE = w.group("wide enough further fully completely tight tightly firmly")
"""Behind a verb of moving: it may have begun before."""
_INVERTS = w.group("will must should can may")
_CAUSE = w.group("let make makes making letting allow command tell cause causes lets")
_CLAUSE_BEFORE = w.STOPS | w.group(": so and therefore thus hence now then that until when once as before")
_POSSESSIVE = (w.FILLERS | {"of"}) - {"now"}
_CUES = w.group("next now then finally first here therefore so")
_WITH = w.group(""", with has have keep keeps keeping hold holds holding leave leaves leaving maintain maintains
    maintaining stay stays""")
_STILL = w.group("still currently")
_EMPHASIS = w.BE | w.STAY | _STILL | w.group("already fully wide")
_VERBS = w.group("open shut spread")
"""Adjective and verb alike."""
_READY = w.group("ready empty aligned positioned free waiting parallel centered centred")
_OPENING = w.group("release releasing drop dropping let letting free deposit place put")
_CLOSING = w.group("grasp grab grip seize secure hold take pick capture lift pinch clamp clasp get")
_PURPOSES = _OPENING | _CLOSING
_OBJECTS = w.ARTICLES | w.FURNITURE | w.THINGS | w.group("its top bottom middle")
_AT = w.group("in a an the its at")
_UNCLEAR = w.PARTLY | w.PAST
_SAID = w.BE | w.STAY
_PROGRESSIVE = w.BE | w.MODAL | w.ADVERB
_STATES = w.OPEN_STATES | w.CLOSED_STATES
_COME = w.group("come comes coming move moves moving go goes going slide draw pull")
_THE = w.group("the both two gripper")
_WAYS = w.group("to towards toward down above over onto")
_SOON = w.group("about going")
_AND = w.group("and , then now it also therefore simply")
_BEFORE_CLOSING = w.group("before for start starts begin begins attempt attempting ready prior now is")
_GETTING = w.group("being getting gets becomes becoming")


def read_state(context: Context, at: int) -> Reading | None:
    """Read "the gripper is open", "with the fingers closed", "the open gripper", "closed the gripper"."""
    tokens = context.tokens
    closed = tokens[at + (tokens[at + 1] in _STATES)] in w.CLOSED_STATES  # "spread apart"
    start = left(tokens, at)
    if tokens[at] in ("together", "apart") and tokens[at - 1] in _COME:
        return Reading("action", closed, at - 1, at + 1) if is_gripper(context, left(tokens, at - 1)) else None
    if is_gripper(context, start):
        return _predicate(context, start, at, closed)
    end = gripper_after(tokens, at)
    if end and tokens[start] not in w.FURNITURE:
        return _attribute(tokens, at, end, closed)
    return None if is_furnished(context, at) else _read_distant_state(context, start, at, closed)


def _read_distant_state(context: Context, start: int, at: int, closed: bool) -> Reading | None:
    """Read "the gripper is over the bowl, still open", "withdraws closed.", "keeps to its open state"."""
    tokens, after = context.tokens, context.tokens[at + 1]
    subject = gripper_before(tokens, start + 1)
    if not subject:
        return None
    said = tokens[subject:start]
    is_end = after in w.BREAKS or after in _WAYS
    is_said = (after in w.STATE_NOUNS and after != "position") or (subject == start - 1 and is_end)
    if tokens[start] in ("and", ",", "but") or (tokens[start] == ":" and after == ","):
        is_ready = after == "and" and tokens[at + 2] in _READY
        is_last = after in w.BREAKS and ("is" in said or "are" in said)
        is_last = is_last or (tokens[at - 1] == "," and after in w.STOPS and tokens[at] not in _VERBS)
        is_said = is_said or is_ready or is_last or not _EMPHASIS.isdisjoint(tokens[start + 1 : at])
    reading = _predicate(context, start, at, closed) if is_said else None
    is_clause = reading is not None and not reading.weight and not w.BE.isdisjoint(said)
    return reading._replace(weight=1) if reading is not None and is_clause else reading


def _predicate(context: Context, start: int, at: int, closed: bool) -> Reading | None:
    """What is said of a gripper at `start` by a word of its state."""
    tokens = context.tokens
    link = frozenset(tokens[start + 1 : at])
    negated = not link.isdisjoint(w.NEGATION)
    if link & _UNCLEAR or "neither" in link or "or" in (tokens[at - 1], tokens[at + 1], tokens[at + 2]):
        return None
    if link & _AT and tokens[at + 1] not in w.STATE_NOUNS:  # "in the open drawer"
        return None
    if (negated and link & w.FULLY) or tokens[at + 1] in w.FURNITURE or is_supposed(tokens, start):
        return None
    is_verb = tokens[at] in _VERBS
    if is_verb and tokens[at + 1] in ("it", "them"):  # "lower the gripper, open it"
        return None
    if link & w.MODAL and not link & w.STAY:
        if negated:
            return None
        is_event = is_verb and "be" not in link
        is_event = is_event or (tokens[at] != "open" and (link & _SOON or tokens[at + 1] in ("now", "here")))
        return Reading("action" if is_event else "either", closed, start, at + 1)
    if link & _GETTING and not (tokens[at] == "open" and "being" in link):
        kind = "either" if "being" in link else "action"
        return Reading(kind, closed, start, at + 1) if not negated else None
    if is_verb and not link:
        cause = start - 1
        while tokens[cause] in _POSSESSIVE:
            cause -= 1
        if tokens[cause] in _WITH:
            return Reading("state", closed, start, at + 1)
        if tokens[cause] in _CAUSE or (tokens[at + 1] in ("to", "and") and tokens[at + 2] in _PURPOSES):
            return Reading("action", closed, start, at + 1)
        if tokens[start] in w.MANY or tokens[start] == "they":
            is_subject = tokens[start - 1] in _THE or tokens[start] == "they"
            is_sentence = is_subject and tokens[cause] in _CLAUSE_BEFORE  # "so the fingers open"
            return Reading("action" if is_sentence else "passive", closed, start, at + 1)
    if is_verb and tokens[start] in ("which", "that") and not link & _SAID:
        return Reading("action", closed, start, at + 1)
    weight = 2 if link & _STILL else 1 if link & _SAID or tokens[start + 1] == "," else 0
    return Reading("state", closed ^ negated, start, at + 1, weight)


def _attribute(tokens: Sequence[str], at: int, end: int, closed: bool) -> Reading | None:
    """A word of state or an action in front of its gripper at `end`: "open gripper", "opened the gripper"."""
    word, before = tokens[at], tokens[at - 1]
    has_article = any(token in w.DETERMINERS or token == "both" for token in tokens[at + 1 : end])
    if before.endswith("ly") and before not in w.FULLY:  # "slowly open gripper"
        before = tokens[at - 2] if tokens[at - 2] in VERB_BEFORE else "and"
    if before == "," and tokens[at - 2] in _CUES:
        before = "then"
    if before in w.PARTLY:
        return None
    if word not in _VERBS:
        if has_article:
            return None if is_supposed(tokens, at) else Reading("done", closed, at, end + 1)
        return Reading("state", closed, at, end + 1, weight=3)
    if has_article or before in VERB_BEFORE or before == "and":
        return _action(tokens, at, end + 1, closed)
    if before in w.BREAKS and not tokens[end + 1].endswith("s"):  # "open gripper lifts the bowl"
        is_order = tokens[end + 1] in ("to", "and") and tokens[end + 2] in _PURPOSES
        is_order = is_order or (at > PAD and tokens[end + 1] in w.STOPS)  # "the rim is between the jaws. Open gripper."
        return Reading("action" if is_order else "either", closed, at, end + 1)
    return Reading("state", closed, at, end + 1, weight=3)


def _action(tokens: Sequence[str], at: int, end: int, closed: bool) -> Reading:
    """The gripper opens or closes, now or next; behind "after" maybe just before."""
    before = tokens[at - 1]
    if before in PERFECT:
        return Reading("done", closed, at, end)
    return Reading("either" if before in AFTER else "action", closed, at, end)


def read_verb(context: Context, at: int) -> Reading | None:
    """Read "close the fingers", "the gripper will open", "then close around the bowl", "ready to close"."""
    tokens = context.tokens
    word = tokens[at]
    closed = not word.startswith(("open", "spread", "loosen", "relax", "widen", "unclench"))
    end = gripper_after(tokens, at)
    if word.startswith(("tighten", "squeez", "relax")) and (end or tokens[at + 2] in ("hold", "grasp")):
        return Reading("either", closed, at, at + 3)
    if end:
        return _action(tokens, at, end + 1, closed)
    if tokens[at + 1] in ("it", "them") and is_gripper(context, at + 1):
        return _action(tokens, at, at + 2, closed)
    if tokens[at + 1] in _OBJECTS:
        return None
    if (reading := _said_of_gripper(context, at, closed)) is not None:
        return reading
    if word in ("close", "closing", "open") and _closes_around(context, at):
        return _action(tokens, at, at + 2, closed)
    if not word.startswith(("open", "close", "closing")) or is_furnished(context, at):
        return None
    return _alone(tokens, at, closed)


def _said_of_gripper(context: Context, at: int, closed: bool) -> Reading | None:
    """A gripper in front of a verb that has no other object."""
    tokens, word = context.tokens, context.tokens[at]
    start = left(tokens, at)
    if not is_gripper(context, start):
        return None
    link = frozenset(tokens[start + 1 : at])
    if word == "opening" and link <= {"s"}:  # "the gripper's opening is wide"
        is_verb = tokens[at + 1] in ("to", "up", "now")
    elif word.endswith("ing"):
        is_verb = link & _PROGRESSIVE or (tokens[at + 1] in _AROUND and closed) or tokens[at + 1] == "to"
    elif word.endswith("s"):
        is_verb = True
    elif link & w.MODAL:
        is_verb = not (link & w.MODAL == {"to"} and is_furnished(context, at))
    else:  # "the fingers close around it", but "the fingers are close to it"
        is_inverted = not link and tokens[start - 2] in _INVERTS  # "only there will the gripper open"
        is_verb = not link & w.BE and (tokens[start] in w.MANY or tokens[start - 2] in _CAUSE or is_inverted)
        is_verb = is_verb and (tokens[at + 1] != "to" or tokens[at + 2] in _PURPOSES)
    kind = "either" if tokens[at + 1] in _MORE else "action"
    return Reading(kind, closed, start, at + 1) if is_verb else None


def _closes_around(context: Context, at: int) -> bool:
    tokens, before = context.tokens, context.tokens[at - 1]
    if tokens[at + 1] not in _AROUND or before in _NEAR:
        return False
    if tokens[at] == "open":
        return before in VERB_BEFORE or before in w.STOPS
    if tokens[at + 1] in ("around", "onto", "upon"):
        return True
    return tokens[at + 1] != "in" and before in _START and not is_furnished(context, at)


def _alone(tokens: Sequence[str], at: int, closed: bool) -> Reading | None:
    """Read "then close.", "open to release it": a verb of which nobody says what it is done to."""
    word, before, after = tokens[at], tokens[at - 1], tokens[at + 1]
    is_aim = after == "to" and tokens[at + 2] in _PURPOSES
    if word.endswith("ing"):
        is_verb = before in _BEFORE_CLOSING or (before in w.STOPS and after == "now")
        return Reading("action", closed, at, at + 1) if is_verb and (after in _ENDS or after == "to") else None
    if word.endswith("s"):
        is_verb = before in _AND and (after in _ENDS or after in _AROUND or is_aim)
        return Reading("action", closed, at, at + 1) if is_verb else None
    if before not in _START or not (after in _ENDS or is_aim):
        return None
    is_adjective = after == "and" and tokens[at + 2] in _READY
    is_far = (
        closed and before in (",", "and") and after not in ("to", "and") and after not in w.STOPS
    )  # "near and close"
    if is_adjective or is_far:
        return None
    is_unclear = before in (",", "and") and not closed and gripper_before(tokens, at)
    return Reading("either" if is_unclear else "action", closed, at, at + 1)


JAW_READERS: dict[str, tuple[Reader, ...]] = {
    **dict.fromkeys(w.OPEN_STATES | w.CLOSED_STATES, (read_state,)),
    **dict.fromkeys(("open", "shut", "spread"), (read_state, read_verb)),
    **dict.fromkeys(
        w.group("""close closes closing opens opening shuts shutting spreads spreading tighten tightens tightening
            loosen loosens loosening relax relaxes relaxing squeeze squeezes squeezing clench clenches clenching
            unclench widen widens widening"""),
        (read_verb,),
    ),
}
"""Word -> readers, the first that finds something is right."""
