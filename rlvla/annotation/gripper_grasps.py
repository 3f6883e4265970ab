"""Reading words of what grippers take and leave: "grasp the bowl", "still holding it", "has been released".

Furniture, buttons and bowls are dealt with by the same verbs, so much of this is about what is not said of the gripper:
"drop down", "release the button", "hold position", "a firm grasp", "pick the right one".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rlvla.annotation import words as w
from rlvla.annotation.gripper_reading import (
    AFTER,
    BEFORE_GERUND,
    PAD,
    PERFECT,
    VERB_BEFORE,
    Context,
    Reader,
    Reading,
    is_supposed,
    left,
)
from rlvla.annotation.names import stem

_TAKE = w.group("grasp grab grip seize clutch clasp pinch clamp snatch")
_LEAVE = w.group("release drop unclamp ungrasp relinquish")
_TAKES = w.group("grasps grabs grips seizes clutches clasps pinches clamps")
_LEAVES = w.group("releases drops unclamps")
_TAKING = w.group("grasping grabbing gripping seizing clutching clasping pinching clamping")
_LEAVING = w.group("releasing dropping unclamping ungrasping")
_TAKEN = w.group("grasped grabbed gripped seized clutched clasped pinched clamped held picked")
_LEFT = w.group("released dropped unclamped ungrasped")
_WAS = w.BE | w.PAST
_HAS = PERFECT | w.PAST | {"been"}
_ONCE = w.group("once when after")
_WHOSE = w.DETERMINERS | {"robot", "s", "both"}
_DENIED = w.NEGATION | w.MODAL | w.PAST
_ARMS = w.GRIPPER | {"arm"}
_FALL = w.group("go fall drop")
_LINKS = w.BE | w.PAST | w.MODAL | w.ADVERB | w.NEGATION

_KEEP = w.group("""keep keeps keeping continue continues continuing still while maintain maintains maintaining
    remain remains remaining retain retains retaining""")
_WHILE = _KEEP | w.group("is am are")
_MAINTAIN = _KEEP - {"still", "while"}
_PREPARE = w.group("""perform performs performing execute attempt attempting make begin begins start starts initiate
    prepare prepares preparing commence for before about time trigger need needs require requires want wants allow
    allows allowing enable enables permit permits decide decides determine determines""")
"""Behind these a grasp or a release, as nouns, are still to come."""
_PLANNED = w.group("planned next due needed required possible")
_HAPPENS = w.group("happens follows comes starts begins can should must will")
_TOWARDS = w.group("to toward towards at above for reach reaches reached reaching near into over approach approaching")
_OUTCOMES = w.group("""secured secure complete completed is was has established confirmed successful done achieved
    looks seems appears finished""")
_SUCCESS = w.group("secured complete completed established confirmed successful done achieved finished")
_BEEN = w.group("is was has been")
_MEANWHILE = w.group("while during throughout")
_NOT_HELD = w.GRIPPER | w.group("""position pose still steady height course here level orientation arm wrist station
    off place that back open closed nothing above over at firm posture alignment altitude itself there up near where
    when point just apart""")
_HOLDER = (
    w.BREAKS
    | w.GRIPPER
    | w.group("""is am are s still now currently already while keep keeps keeping continue continues continuing and
        firmly securely arm robot safely tightly steadily by""")
)
_NOT_CARRYING = w.group("before for of by start starts begin begins without after than to then when once")
_NOT_PICKED = w.group("which one option target right correct best path route out between among pad button candidate")
_RELEASES = w.group("release releases releasing released")
_PRESSES = w.group("press presses pressed pressing push pushes pushed pushing")
_PRESSED = w.group("button buttons pad pads switch key trigger pressure tension brake contact knob")
_NOT_DROPPED = w.group("""down to toward towards lower by below slightly straight vertically back height off zone
    point area over in into onto further closer arm gripper hand wrist effector fingers low from""")
_HANDS = w.GRIPPER | w.group("arm robot it its one")
_HOLDERS = _HANDS | {"and", ","}
_PUT = w.group("placed put deposited stowed inserted delivered set left released dropped")
"""Behind "was grasped": it is no longer held."""
_EARLIER = w.group("earlier previously before originally first")
_ADVERBS = w.ADVERB | {"to", "the"}


def _words_after(tokens: Sequence[str], at: int, limit: int) -> list[str]:
    """The clause behind a word, at most so many words of it."""
    found: list[str] = []
    for token in tokens[at + 1 : at + 1 + limit]:
        if token in w.BREAKS:
            break
        found.append(token)
    return found


def _behind(tokens: Sequence[str], at: int, words: frozenset[str]) -> bool:
    """Whether a word comes behind one of those, adverbs, "to" and articles aside."""
    back = at - 1
    while at - back < 5 and tokens[back] in _ADVERBS and tokens[back] not in words:
        back -= 1
    return tokens[back] in words


def _noun(tokens: Sequence[str], at: int, closed: bool) -> Reading | None:
    """Read "move to the grasp pose", "begin the release", "maintain a firm grip"."""
    start = at - 1
    while at - start < 5 and tokens[start] in w.DETERMINERS:
        start -= 1
    if not w.POSES.isdisjoint(tokens[at + 1 : at + 3]):
        return Reading("action", closed, at, at + 2) if tokens[start] in _TOWARDS else None
    outcome = tokens[at + 2] if tokens[at + 1] in _BEEN else tokens[at + 1]
    if outcome in _SUCCESS:
        return Reading("done", closed, at, at + 2, weight=1)
    if closed and tokens[start] in _MAINTAIN:
        return Reading("state", True, start, at + 1, weight=1)
    if tokens[start] == "after":
        return Reading("either", closed, at, at + 1)
    is_planned = tokens[at + 1] in _HAPPENS or (tokens[at + 1] == "is" and tokens[at + 2] in _PLANNED)
    is_planned = is_planned or tokens[start] in _PREPARE
    return Reading("action", closed, at, at + 1) if is_planned else None


def _is_of_gripper(tokens: Sequence[str], at: int) -> bool:
    """Not of a button that is let go, of an arm that drops, or of a choice that is made."""
    word, after = tokens[at], _words_after(tokens, at, 4)
    if word in _RELEASES:
        return _PRESSES.isdisjoint(tokens) or _PRESSED.isdisjoint([*after, *_clause_before(tokens, at)])
    if word == "dropped":
        return not after or after[0] not in _NOT_DROPPED - {"in", "into", "onto", "over"}
    if word.startswith("drop"):
        return not after or (after[0] not in _NOT_DROPPED and _NOT_DROPPED.isdisjoint(after[:2]))
    if word.startswith("pick"):
        return "up" in _words_after(tokens, at, 7) or (bool(after) and _NOT_PICKED.isdisjoint(after))
    return True


def _read_base(context: Context, at: int) -> Reading | None:
    """Read "grasp the bowl", "to release it", "the grasp"."""
    tokens, closed = context.tokens, context.tokens[at] in _TAKE or context.tokens[at] == "pick"
    before, after = tokens[at - 1], _words_after(tokens, at, 7)
    is_noun = bool(after) and (after[0] in w.POSES or (after[0] in _OUTCOMES and before not in VERB_BEFORE))
    if is_noun or before in w.DETERMINERS or before == "s" or (before == "for" and "up" not in after):
        return _noun(tokens, at, closed)
    if not _is_of_gripper(tokens, at):
        return None
    if before in _MAINTAIN and tokens[at + 1] in ("of", "on"):  # "maintain grasp of the bowl"
        return Reading("state", closed, at - 1, at + 1, weight=1) if closed else None
    if closed and tokens[at] != "pick" and (_behind(tokens, at, _KEEP) or not _MEANWHILE.isdisjoint(after)):
        return Reading("either", closed, at, at + 1)
    return Reading("action", closed, at, at + 2)


def _read_third(context: Context, at: int) -> Reading | None:
    """Read "the gripper grasps the bowl", which may well go on for long."""
    tokens, word = context.tokens, context.tokens[at]
    if not _is_of_gripper(tokens, at) or tokens[at - 1] in w.DETERMINERS:
        return None
    return Reading("either" if word in _TAKES else "action", word in _TAKES or word == "picks", at, at + 2)


def _read_gerund(context: Context, at: int) -> Reading | None:
    """Read "grasping the bowl", "before releasing it"."""
    tokens, word, before = context.tokens, context.tokens[at], context.tokens[at - 1]
    closed = word in _TAKING or word == "picking"
    if tokens[at + 1] in w.POSES:
        return _noun(tokens, at, closed)
    if before in w.DETERMINERS or not _is_of_gripper(tokens, at):
        return None
    if before in AFTER:
        return Reading("either", closed, at, at + 2)
    if closed and before not in BEFORE_GERUND and before not in _KEEP:
        return Reading("either", True, at, at + 2)
    if closed and word != "picking" and before in _KEEP:
        return Reading("state", True, at - 1, at + 2, weight=1 + (before == "still"))
    is_phrase = before in w.STOPS and "," in tokens[at + 1 : at + 8]  # "releasing it, back off"
    is_meanwhile = before in _WHILE or is_phrase
    return Reading("passive" if is_meanwhile and not closed else "action", closed, at, at + 2)


def _read_participle(context: Context, at: int) -> Reading | None:
    """Read "the bowl is grasped", "having released it", "can be grasped", "the held bowl"."""
    tokens, word = context.tokens, context.tokens[at]
    closed = word in _TAKEN
    start = left(tokens, at, _LINKS)
    link = frozenset(tokens[start + 1 : at])
    if not _is_of_gripper(tokens, at) or (word == "picked" and not link & _WAS):
        return None
    after, following = _words_after(tokens, at, 4), tokens[at + 1]
    is_pose = following in w.STATE_NOUNS or (word == "held" and (tokens[start] in w.GRIPPER or following in _NOT_HELD))
    is_by_others = "by" in after[:1] and _HANDS.isdisjoint(after)  # "held by the rack"
    if is_pose or is_by_others or (tokens[at - 1] in w.DETERMINERS and "will" in after):
        return None
    if link & w.NEGATION:
        is_yet_to_come = "yet" in [*link, *_words_after(tokens, at, 6)] and not is_supposed(tokens, start)
        return Reading("done", not closed, start + 1, at + 1) if is_yet_to_come else None
    is_inverted = tokens[start] in w.THINGS and tokens[start - 1] in w.MODAL  # "only there will it be released"
    if "being" in link or ("be" in link and (link & w.MODAL or is_inverted)):
        return Reading("action", closed, start + 1, at + 1)
    about = _is_about(context, at)
    if is_supposed(tokens, start + 1) or tokens[start] in w.SUBORDINATORS or about is False:
        return None
    rest = itertools.takewhile(lambda token: token not in w.STOPS, tokens[at + 1 : at + PAD])
    if closed and not _PUT.isdisjoint(rest):
        return None
    is_perfect = link & _HAS
    is_then = ("then" in tokens[start - 2 : start]) or tokens[start - 3 : start] == ["after", "that", ","]
    if "gets" in link or (link & w.BE and not is_perfect and (following in _ONCE or is_then)):
        return Reading("action", closed, start + 1, at + 1)
    kind = "passive" if link & w.BE and not is_perfect else "done"
    return Reading(kind, closed, start + 1, at + 2, weight=int(about is True))


def _is_about(context: Context, at: int) -> bool | None:
    """Whether what was taken or left is the subject, None where nobody says; other objects are long dealt with."""
    tokens = context.tokens
    clause, noun = [*_clause_before(tokens, at), *_words_after(tokens, at, 6)], ""
    if not _EARLIER.isdisjoint(clause):
        return False
    if not w.THINGS.isdisjoint(clause):
        return True
    for before, word in zip(["", *clause], clause, strict=False):
        if stem(word) in context.subject and (before in w.DETERMINERS or stem(before) in context.subject or not before):
            return True
        noun = noun or (word if before in w.ARTICLES and word not in w.GRIPPER else "")
    return False if noun and context.subject else None


def _clause_before(tokens: Sequence[str], at: int) -> list[str]:
    start = at
    while start > PAD and at - start < 7 and tokens[start - 1] not in w.BREAKS:
        start -= 1
    return list(tokens[start:at])


def _read_hold(context: Context, at: int) -> Reading | None:
    """Read "holding the bowl", "hold it tight"; not "hold position" or "the rack holding the bottle"."""
    tokens, word, before = context.tokens, context.tokens[at], context.tokens[at - 1]
    after = [token for token in _words_after(tokens, at, 4) if token not in _WHOSE]
    if not after or after[0] in _NOT_HELD or before in w.DETERMINERS or before == "take":
        return None
    subject = left(tokens, at)
    if word in ("hold", "holds"):
        is_other = word == "holds" and tokens[subject] not in _HOLDERS
        return None if is_other else Reading("either", True, at, at + 2, weight=1)
    link = frozenset(tokens[subject + 1 : at])
    if before not in _HOLDER or link & _DENIED or is_supposed(tokens, at):
        return None
    return Reading("state", True, at, at + 2, weight=1 + (before == "still") if before != "while" else 0)


def _read_carrying(context: Context, at: int) -> Reading | None:
    """Read "carrying the bowl", which needs closed fingers; "carry" is part of a plan."""
    tokens, before = context.tokens, context.tokens[at - 1]
    if before in _NOT_CARRYING or is_supposed(tokens, at) or not _words_after(tokens, at, 1):
        return None
    return Reading("state", True, at, at + 2, weight=0 if before in ("while", "and") else 1)


def _read_let(context: Context, at: int) -> Reading | None:
    """Read "let go of the bowl", "letting it drop", "has let it go"."""
    tokens = context.tokens
    after = _words_after(tokens, at, 5)
    if _FALL.isdisjoint(after):
        return None
    end = at + 2 + next(i for i, token in enumerate(after) if token in _FALL)
    link = frozenset(tokens[left(tokens, at, _LINKS) + 1 : at])
    if not link & (w.MODAL | {"gets"}) and (link & _WAS or tokens[at - 1] in ("just", "already")):
        return Reading("done", False, at, end)
    if tokens[at] == "let" and tokens[at - 1] in w.GRIPPER:  # "the gripper let go", but "the fingers let go"
        return Reading("either" if tokens[at - 1] in w.MANY else "done", False, at, end)
    return Reading("either" if tokens[at - 1] in AFTER else "action", False, at, end)


def _read_put_down(context: Context, at: int) -> Reading | None:
    """Read "put the bowl down"; "put" alone may be said of the whole task."""
    tokens = context.tokens
    after = _words_after(tokens, at, 6)
    if "down" not in after or not _ARMS.isdisjoint(after) or tokens[at - 1] in w.DETERMINERS:
        return None
    return Reading("done" if tokens[at - 1] in _HAS else "action", False, at, at + 2 + after.index("down"))


def _read_take_hold(context: Context, at: int) -> Reading | None:
    """Read "take hold of the handle", "latch onto it"."""
    tokens = context.tokens
    is_latch = tokens[at].startswith("latch") and tokens[at + 1] in ("onto", "on")
    if not is_latch and tokens[at + 1] != "hold":
        return None
    is_had = tokens[at] in ("got", "taken") and not _HAS.isdisjoint(tokens[at - 2 : at])  # "I've got hold of it"
    return Reading("state" if is_had else "action", True, at, at + 2)


GRASP_READERS: dict[str, tuple[Reader, ...]] = {
    **dict.fromkeys(_TAKE | _LEAVE | {"pick"}, (_read_base,)),
    **dict.fromkeys(_TAKES | _LEAVES | {"picks"}, (_read_third,)),
    **dict.fromkeys(_TAKING | _LEAVING | {"picking"}, (_read_gerund,)),
    **dict.fromkeys(_TAKEN | _LEFT, (_read_participle,)),
    **dict.fromkeys(w.group("hold holds holding"), (_read_hold,)),
    **dict.fromkeys(w.group("carrying transporting"), (_read_carrying,)),
    **dict.fromkeys(w.group("let lets letting"), (_read_let,)),
    **dict.fromkeys(w.group("put puts putting set sets setting lay lays laying"), (_read_put_down,)),
    **dict.fromkeys(w.group("take takes taking get gets getting got taken latch latches latching"), (_read_take_hold,)),
}
"""Word -> readers."""
