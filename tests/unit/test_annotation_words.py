"""Sentences about grippers, honest and with one word flipped.

In SENTENCES `{open|closed}` is the honest word and the one that a flip puts in its place.
"""

import re

import pytest

from rlvla.annotation.gripper_claims import Motion, claims, contradiction
from rlvla.annotation.words import tokens

MOTIONS = {
    "approach": Motion(is_closed=False, now="", ahead="close", holds=False, lifts=False),
    "grasp": Motion(is_closed=False, now="close", ahead="close", holds=False, lifts=False),
    "carry": Motion(is_closed=True, now="", ahead="open", holds=True, lifts=False),
    "release": Motion(is_closed=True, now="open", ahead="open", holds=True, lifts=False),
    "retreat": Motion(is_closed=False, now="", ahead="", holds=False, lifts=False),
    "again": Motion(is_closed=False, now="", ahead="close", holds=False, lifts=False),
    "press": Motion(is_closed=True, now="", ahead="", holds=False, lifts=True),
    "reopen": Motion(is_closed=True, now="", ahead="open", holds=False, lifts=False),
}
SENTENCES = {
    "approach": """
        The gripper travels toward the pan in an {open|closed} configuration.
        Hovering over the cream cheese with an {open|closed} gripper; lower to {grasp|release} height.
        The next action will be to {close|open} the gripper, but the gripper has to come down first.
        The arm swings left above the white mug, fingers {open|closed}, ready to {grasp|release} the handle.
        The gripper is not {closed|open} yet because the bowl is still too far below.
        Gripper {open|closed}, moving down to the mug handle.
        The plan is to lower the gripper, {close|open} it on the pudding box and lift.
        The mug sits in the open microwave. Reach in with {open|closed} fingers.
        Fingers {open|closed}, arm above the book, going down.
        The gripper is {open|closed} and turns so that its fingers are parallel to the book.
        The gripper comes from the right so that its lower jaw passes under the rim; jaws {open|closed}.
        Lower toward the drawer handle with the fingers {spread|shut}.
        Fingers stay {open|closed}, wrist goes down.
        Gripper: {open|closed}. Target: red block. Move down 5 cm.
        The arm keeps descending; gripper {open|closed}, nothing held.
        The mug's handle faces the gripper, which is {open|closed} at the moment.
        The gripper approaches with its jaws {open|closed}, in order to {grip|release} the can in a moment.
        The gripper nears the milk; it'll {close|open} as soon as the carton is between the fingers.
        Gripper width is large, meaning the gripper is {open|closed}.
        I need to go lower; the hand is {open|closed} and the can is under it.
        The {open|closed} fingers are moving toward the rim of the bowl.
        The fingers have been {opened|closed} and the arm descends.
        The orange juice is in front of the gripper, whose fingers are spread {apart|together}.
        Nothing to hold yet. The hand is {open|closed} and goes down.
        The arm must lower until the milk is within grasp.
        grasp the black bowl
    """,
    "grasp": """
        Here the gripper {closes|opens}.
        Since the fingers straddle the rim, the gripper should be {closed|opened} now.
        The milk is now between the fingers; this is when the gripper has to {close|open}.
        The gripper is where it should be and {open|closed}. {Close|Open} it around the bowl.
        Command the gripper to {close|open}.
        {Close|Open} the fingers around the soup can to establish a firm grip.
        The handle lies between the fingers, therefore the gripper {closes|opens} to take it.
        {Closing|Opening} the gripper around the red block.
        The gripper is at the right height; {closing|opening} the fingers.
        Ready to {close|open}: the block fills the gap between the fingers.
        The gripper is {open|closed} and the drawer is closed; {grasp|release} its handle.
        The zoom confirms the fingers are {open|closed} and centred on the block. {Close|Open} now.
        The gripper is in position; it is time to {close|open} the fingers.
        About to {close|open} the gripper at the black bowl: look closely.
        The bowl is ready to be {picked up|put down}: {close|open} the fingers first.
        {Grip|Release} the handle.
        The small gap between left finger and rim decides. If the rim is inside, {close|open}.
        The gripper, currently {open|closed}, should {grip|release} the handle.
        The block is between the jaws. {Squeeze|Release} it.
        The fingers close on the handle.
    """,
    "carry": """
        The block may slip if the fingers loosen, so they stay {closed|open}.
        Having {grasped|released} the bowl, raise it above the plate.
        The arm drops slightly while carrying the can; the gripper stays {closed|open}.
        As the gripper is {closed|open} around the mug, I can carry it to the microwave.
        The block is off the table, {clamped|released} in the gripper.
        Since the can is {grasped|released}, the arm lifts it out of the clutter.
        The gripper {closed|opened} on the mug a moment ago; now lift.
        Keep the grip {closed|open} and go up.
        With the milk {held|released} in the gripper, go right.
        The red block is firmly {held|released} as the arm moves over the basket.
        The gripper keeps its fingers {closed|open}.
        Successfully {grasped|released} the block. Lift now.
        The gripper stays {closed|open} around the milk carton while the arm rises above the other items.
        Now that I have {grasped|released} the cream cheese I lift it towards the basket.
        The bowl is in the robot's gripper, {closed|open} tightly. Move to the plate.
        The bowl nears the plate and the gripper is {closed|open} until it touches.
        Now above the basket. Lower, then {let go of|grab} the can.
        Continue to hold the bowl above the plate; the fingers are {closed|open}.
        Bring it lower. Fingers {closed|open}.
        With the block in its {closed|open} jaws, the arm moves over the bowl.
        The gripper is {closed|open}; the cream cheese moves with it towards the basket.
        The fingers hold the book upright. Approaching the caddy's back compartment for {release|grasping}.
        I'm carrying the pot to the burner, where I'll {release|grasp} it.
        The gripper went from open to closed, so the bowl can be lifted; the jaws are {closed|open}.
        The robot is {holding|releasing} the bowl and moves to the plate.
        release the black bowl on the plate
    """,
    "release": """
        {Open|Close} the gripper to {drop|grab} the cream cheese.
        {Open|Close} and retreat.
        {Release|Tighten} the hold on the pan.
        The milk hangs over the middle of the basket and the gripper {opens|closes} to {drop|grab} it.
        The book is inside the caddy and the gripper {opens|closes} to leave it there.
        {Loosen|Tighten} the grip to set the bowl free.
        {Open|Close} the fingers to {let go of|take hold of} the can.
        The bowl is stable on the plate, which settles that the gripper may {open|close}.
        {Open|Close} gripper now.
        The object is above the target. {Open|Close} the hand.
        Gripper is {closed|open}; next it {opens|closes}.
        {Let go of|Take hold of} the cream cheese above the basket.
        {let go of|grasp} the akita black bowl
        Now it is time to {let the can go|take hold of the can}.
        The mug is on the plate. Now I {let go of|grab} it.
        The cream cheese is over the basket so I {release|grasp} it now.
        I zoom in to check that the bowl is on the plate before {opening|closing} the gripper.
        The gripper is {closed|open} around the block above the bowl: {drop|grab} it.
        The drawer is all the way out; the gripper {opens|closes} to free the handle.
        The gripper should {open|close} now because the bowl is supported.
    """,
    "retreat": """
        The gripper has already {released|grasped} the bottle, and the arm returns.
        The bowl has been {released|grasped}; retreat upward.
        Retract, keeping the jaws {open|closed}.
        The bowl no longer moves with the gripper, which is {open|closed}; the arm retreats.
        The can lies in the basket. With its fingers {open|closed} the gripper leaves the basket upwards.
        The gripper is {open|closed}. Leave the basket.
        Turn on the stove by pushing the knob with the {open|closed} fingers.
        The robot has {released|grasped} the bowl; move up.
        The task is complete. The bowl was {released|grasped} on the plate.
        Since the block has been {released|grasped}, the arm goes home.
        I've {let go of|taken hold of} the bowl and pull the arm back.
        The door closes as the arm pushes.
        The stove knob turns as the finger pushes it; then the stove is on.
        There is nothing left to grasp; withdraw upward.
    """,
    "again": """
        The gripper is {open|closed} after releasing the soup and travels to the milk to {grasp|release} it.
        The first moka pot was put on the stove. The {open|closed} gripper moves to the second one.
        After having released the first pot, the arm goes to the second one with the gripper {open|closed}.
        Having left the first pot on the stove, approach the other one; fingers {open|closed}.
        Back to the shelf for another can, gripper {open|closed}.
    """,
    "press": """
        Keep the gripper {closed|open}; push the knob.
        The fingers stay {shut|open} while the hand turns the knob.
        Gripper {closed|open}, press the pad.
        The fingertip pushes the button; the gripper is {closed|open}.
        The gripper is {closed|open}, empty, and descends onto the red pad to press it.
        The drawer is almost shut; the {closed|open} gripper keeps pushing.
        Slide the plate with the {closed|open} fingers.
        Pick the correct pad: the one with the star. The fingers are {closed|open}.
    """,
    "reopen": """
        {Open|Close} the gripper, then approach the bowl to grasp it.
        The gripper is {closed|open} at first, so {open|close} it and move to the bowl.
        {Opening|Closing} the gripper is needed before the bowl can be grasped.
        The gripper is {closed|open}, so I first {open|close} it.
    """,
}
SLOT = re.compile(r"\{([^|}]*)\|([^}]*)\}")
TABLE = [(kind, line.strip()) for kind, lines in SENTENCES.items() for line in lines.split("\n") if line.strip()]
FLIPPED = [(kind, line, number) for kind, line in TABLE for number in range(len(SLOT.findall(line)))]


def say(line: str, flipped: int = -1) -> str:
    """The sentence with the honest words, but for one slot."""
    parts = SLOT.split(line)
    words = [parts[3 * slot + (2 if slot == flipped else 1)] for slot in range(len(parts) // 3)]
    return parts[0] + "".join(word + rest for word, rest in zip(words, parts[3::3], strict=True))


@pytest.mark.parametrize(("kind", "line"), TABLE)
def test_honest_sentences_are_accepted(kind: str, line: str) -> None:
    assert contradiction(claims(say(line)), MOTIONS[kind]) is None


@pytest.mark.parametrize(("kind", "line", "slot"), FLIPPED)
def test_a_flipped_word_is_found(kind: str, line: str, slot: int) -> None:
    assert contradiction(claims(say(line, slot)), MOTIONS[kind]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "open the top drawer of the cabinet",
        "close the microwave door",
        "push the drawer to close it",
        "the drawer is open and the microwave is closed",
        "turn on the stove",
        "lift the bowl and place it on the plate",
        "the mug is close to the gripper",
        "close the distance to the bowl",
        "look closely at the rim",
        "the arm drops down towards the table",
        "press the button, then release the button",
        "pick the correct pad: the left one",
        "the arm holds its position above the plate",
        "the rack holding the bottle is on the right",
        "use the gripper to close the drawer",
        "reach into the open drawer with the gripper",
        "the gripper's opening is wider than the rim",
        "on the other hand, the plate is far away",
        "whether the gripper is open or closed is hard to see",
        "the gripper was open before",
        "once the gripper is closed, the bowl can be lifted",
        "the task is to grasp the bowl and release it on the plate",
        "it is dropped into the basket later",
        "there is no need to grasp it",
        "",
    ],
)
def test_what_is_not_said_of_the_gripper_claims_nothing(text: str) -> None:
    assert all(contradiction(claims(text), motion) is None for motion in MOTIONS.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the gripper is open", [("state", False)]),
        ("the gripper isn't closed yet", [("state", False)]),
        ("with the fingers closed, lift it", [("state", True)]),
        ("open gripper to release it", [("action", False), ("action", False)]),
        ("the bowl has been grasped", [("done", True)]),
        ("the bowl is grasped", [("passive", True)]),
        ("grasping the bowl", [("either", True)]),
        ("about to close the gripper", [("action", True)]),
        ("holding the bowl", [("state", True)]),
        ("carrying the bowl to the plate", [("state", True)]),
        ("let go of the bowl", [("action", False)]),
        ("take hold of the handle", [("action", True)]),
        ("do not open the gripper", [("state", True)]),
        ("do not open the gripper yet", [("action", False)]),
    ],
)
def test_readings(text: str, expected: list[tuple[str, bool]]) -> None:
    assert [(claim.kind, claim.closed) for claim in claims(text)] == expected


def test_only_the_first_step_of_a_plan_has_to_agree() -> None:
    plan = "grasp the bowl, then carry it to the plate and release it"
    assert contradiction(claims(plan), MOTIONS["approach"]) is None
    wrong = contradiction(claims(plan), MOTIONS["carry"])
    assert wrong is not None
    assert wrong.words == "grasp the"


def test_opposite_words_of_one_move_are_found() -> None:
    wrong = contradiction(claims("close the fingers to release the bowl"), MOTIONS["grasp"])
    assert wrong is not None
    assert not wrong.closed


def test_an_empty_gripper_may_open_in_order_to_grasp() -> None:
    found = claims("open the gripper to grasp the bowl")
    assert contradiction(found, MOTIONS["reopen"]) is None
    assert contradiction(found, MOTIONS["release"]) is not None


def test_pick_up_may_be_said_of_lifting() -> None:
    lifting = Motion(is_closed=True, now="", ahead="open", holds=True, lifts=True)
    assert contradiction(claims("pick up the bowl"), lifting) is None
    assert contradiction(claims("pick up the bowl"), MOTIONS["carry"]) is not None


def test_what_was_done_to_another_object_is_history() -> None:
    text = "the red block has been released, go on to the bowl"
    assert contradiction(claims(text, subject="blue block"), MOTIONS["carry"]) is None
    assert contradiction(claims(text, subject="red block"), MOTIONS["carry"]) is not None


def test_a_recited_instruction_claims_nothing() -> None:
    instruction = "pick up the black bowl and place it on the plate"
    text = f"To {instruction.upper()}, go on to the right."
    assert contradiction(claims(text, instruction=instruction), MOTIONS["carry"]) is None
    assert contradiction(claims(text), MOTIONS["carry"]) is not None


def test_tokens() -> None:
    assert tokens("It isn't the end-effector\u2019s 0.5 cm \u2014 stop!") == (
        *("it", "is", "not", "the", "end", "effector", "s", "0.5", "cm", ",", "stop", "!"),
    )
