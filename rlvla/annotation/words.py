"""Words of annotations: tokens, and the vocabulary of grippers and of what robots do.

`gripper_claims.py` says what a sentence made of these words claims of the gripper, `names.py` which object it means.
"""

from __future__ import annotations

import re
from functools import lru_cache

_TOKEN = re.compile(r"[a-z]+|\d+(?:\.\d+)?|[.,;:!?()/=\n]")
_CONTRACTIONS = (
    ("can't", "can not"),
    ("won't", "will not"),
    ("n't", " not"),
    ("'m", " am"),
    ("'re", " are"),
    ("'ve", " have"),
    ("'ll", " will"),
)

_MAX_CHARS = 8000
"""Read of a text, far more than `CheckConfig.num_words` lets pass."""

ARTICLES = frozenset({"a", "an", "the"})
STOPS = frozenset(".;!?\n")
"""Where a sentence ends."""
BREAKS = STOPS | frozenset(",:()")
"""Where a clause ends."""


def group(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


GRIPPER = group("""gripper grippers finger fingers jaw jaws claw claws hand hands pincer pincers effector effectors
    fingertip fingertips grip tongs prong prongs""")
MANY = group("grippers fingers jaws claws hands pincers fingertips effectors tongs prongs")
"""Those whose present tense looks like the adjective: "the fingers open"."""
FURNITURE = group("""drawer drawers door doors cabinet cabinets microwave lid lids fridge refrigerator oven window
    valve faucet tap cupboard dishwasher laptop hatch cover curtain gate flap chest compartment""")
"""What opens and closes besides a gripper."""

OPEN_STATES = group("open opened apart spread parted splayed separated unclenched unclosed ajar")
CLOSED_STATES = group("closed shut clenched clamped together joined tightened pinched")

BE = group("is are s am be been being has have having get gets getting become becomes")
PAST = group("was were had")
STAY = group("""remain remains remaining stay stays staying keep keeps keeping kept held left rest rests sit sits
    appear appears appearing seem seems look looks maintained""")
MODAL = group("""will should must can could may might would shall to need needs ready about going gonna able start
    starts begin begins starting beginning let do does did""")
ADVERB = group("""still now currently presently already just fully completely entirely wide widely firmly tightly
    securely safely again finally also both all itself themselves well nicely sufficiently gently slowly quickly
    carefully clearly visibly yet simply then only rather properly really indeed immediately quite thus therefore
    always soon softly smoothly slightly partially partly half almost nearly semi barely snugly steadily equally
    symmetrically successfully automatically either initially""")
NEGATION = group("""not never no longer neither nor cannot without avoid avoids avoiding instead prevent nothing
    stop stops stopped""")
PENDING = group("yet enough before until")
"""With a negation: what is not done yet is to come, "not low enough to grasp it"."""
PARTLY = group("half partially partly almost nearly semi barely slightly")
"""Neither open nor closed; with a negation "fully" is of the same kind."""
FULLY = group("fully completely entirely quite tightly firmly wide securely widely")
PLACED = group("in a an the its state status position configuration at")
"""Between a gripper and its state, as in "the gripper is in the open position"."""
STATE_NOUNS = group("state position configuration pose mode setting posture")
LINKS = BE | PAST | STAY | MODAL | ADVERB | NEGATION | PLACED
"""What may stand between a gripper and what is said of it."""
FILLERS = group("""the its my your their this that these those both all up wide out slightly fully two parallel
    robot robotic robots s arm arms panda left right empty end back again slowly gently carefully firmly tightly
    quickly now completely own simply around""")
"""What may stand between a verb and its gripper: "open up the robot's two fingers"."""
THINGS = group("it them this that one object item")
PRONOUNS = group("it they them these those")

SUBORDINATORS = group("""once until till when whenever after before if unless whether ensure ensures ensuring then
    later upon lest confirm confirming check checking verify verifying""")
"""What turns a statement of the gripper's state into a condition, a purpose or a question."""
SEQUENCE = group("""then after afterwards before next finally later until once when while during another again other
    second subsequently carry carries carrying move moves moving lift lifts lifting raise raises raising bring
    brings transport transporting transfer place places placing put puts putting lower lowers lowering descend
    retreat retreating retract withdraw return continue proceed""")
"""What separates the steps of a plan: words behind one need not speak of the gripper's next move."""
DEFERRAL = group("later eventually ultimately afterwards")
TASK = group("task goal instruction objective command mission instructions tasked asked told")
TELLS = group("is s was : to of says asks requires reads calls , states")
"""Behind a word of TASK: what is told is the whole task, not this decision."""
DETERMINERS = ARTICLES | group("""its my your this that our their firm secure stable good tight strong better gentle
    careful proper successful current pre top side rim power precision of each every another any some initial final
    safe smooth precise clean quick planned intended desired upcoming solid reliable steady""")
"""Behind these a grasp is a noun."""
POSES = group("point pose position height spot location site area zone moment phase")

HANDLING = group("""grasp grasps grasping grab grabs grabbing grip grips gripping seize pick picks picking lift
    lifts lifting raise raises raising hold holds holding carry carries carrying transport transports transporting
    take takes taking bring brings bringing move moves moving place places placing put puts putting release releases
    releasing drop drops dropping let press presses pressing push pushes pushing pull pulls pulling turn turns
    turning""")
"""What a robot does to an object."""
ONTO = group("grip grasp hold holds holding holding close closes closing latch clamp press pressing push pushing pull")
"""What it does on or around one: "close on the bowl"."""
PLACES = group("""to toward towards into onto above over near beside behind at inside below under on in of around
    against between across through next""")
"""In front of an object that says where something is, or goes."""
AWAY = group("from off past beyond without than")


@lru_cache(maxsize=256)
def tokens(text: str) -> tuple[str, ...]:
    """Lower-case words, numbers and punctuation; contractions are spelt out, hyphens and quotes dropped."""
    text = text[:_MAX_CHARS].lower().replace("\u2019", "'")
    if "'" in text:
        for short, long in _CONTRACTIONS:
            text = text.replace(short, long)
    for dash in ("\u2014", "\u2013", " - ", "--", "->", "=>", "\u2192"):
        text = text.replace(dash, ", ")
    return tuple(_TOKEN.findall(text))
