"""Checks of one annotation: what each finds wrong, in the words that the annotator is asked again with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlvla.annotation.checks import CHECKS, check_decision, with_whole_name
from rlvla.config import CheckConfig, CheckName
from rlvla.types import Annotation, Box, Timeline
from tests import takes
from tests.takes import look, thought

APPROACH, KEY, CARRY, OPENING, RETREAT = 0, 2, 3, 5, 6
PLAIN = "write plain text without marks such as <think>"
STATE = "gripper is '{}', but the gripper is {} before this decision"
COMING = "next_gripper is '{}', but the gripper {} is wanted"
UNPRINTABLE = "holds characters that cannot be printed"
TWICE = Annotation(thoughts=("here",) * 3, looks=((0, (0, 0, 50, 50)),) * 2)


def texts(
    annotation: Annotation, index: int, *names: CheckName, timeline: Timeline | None = None, **options: Any
) -> list[str]:
    """What some checks, or all, find wrong with an annotation of the made-up take; `subjects` are of the take."""
    of = {name: options.pop(name) for name in ("subjects",) if name in options}
    cfg = CheckConfig(names=names or CheckConfig().names, **options)
    asked = takes.query(index, of=takes.take(**of), timeline=timeline or takes.timeline())
    return [p.text for p in check_decision(annotation, asked, cfg)]


@pytest.mark.parametrize(
    ("index", "annotation"),
    [
        (APPROACH, thought("move down to the red block", subtask="grasp the red block", gripper="open")),
        (APPROACH, thought("First line.\nIt\u2019s a rosé cup \u2014 5 cm wide\u2026", subject="The red blocks")),
        (KEY, look(subtask="grasp the red block", gripper="open", next_gripper="close", progress=0.0)),
        (KEY, look(box=(450, 400, 600, 500))),
        (CARRY, thought("carry it over to the bowl", gripper=" Closed", next_gripper="open", progress=1.0)),
        (CARRY, thought(" ".join(f"w{i}" for i in range(80)))),
        (OPENING, look("the block is over the bowl: look closely", "open it to let go of the red block")),
        (RETREAT, thought("the red block is in the bowl", subject="red blocks", gripper="open", next_gripper="stay")),
    ],
)
def test_honest_annotations_pass(index: int, annotation: Annotation) -> None:
    assert texts(annotation, index) == []


def test_problems_name_their_check_and_only_wanted_checks_run() -> None:
    bad = thought("up", gripper="closed", progress=7.0, subject="blue block")
    asked = takes.query(APPROACH, of=takes.take())
    found = check_decision(bad, asked, CheckConfig())
    assert [problem.check for problem in found] == ["length", "gripper", "subject", "progress"]
    assert check_decision(bad, asked, CheckConfig(names=("markup", "repetition"))) == ()
    assert list(CHECKS) == list(CheckConfig().names)


def boxed(check: CheckName, box: Box, text: str) -> tuple[CheckName, int, Annotation, str]:
    return check, KEY, look(box=box), f"the box {list(box)} of look 1 {text}"


@pytest.mark.parametrize(
    ("check", "index", "annotation", "text"),
    [
        ("markup", APPROACH, look(), "there are 1 looks: a decision that is no key frame wants 0"),
        ("markup", KEY, thought(), "there are 0 looks: a key frame wants 1"),
        ("markup", KEY, look(image=1), "look 1 is at picture 1: pictures are numbered from 0 to 0"),
        ("markup", KEY, look(image=-1), "look 1 is at picture -1: pictures are numbered from 0 to 0"),
        ("markup", KEY, look(box=(10, 10, 15, 100)), "the zoom tool refuses the box [10, 10, 15, 100] of look 1: bbox"),
        ("markup", KEY, look("up</think><act>"), f"thought 1 breaks the markup (</think> inside <act>): {PLAIN}"),
        ("markup", KEY, look(after="a <tool>"), f"thought 2 breaks the markup (<tool> inside <think>): {PLAIN}"),
        ("markup", APPROACH, thought("down</think><act></act>"), "thought 1 breaks the markup (something follows the"),
        ("markup", APPROACH, thought("do\u202ewn"), rf"'do\u202ewn' {UNPRINTABLE}"),
        ("markup", APPROACH, thought(subject="a\x00"), rf"'a\x00' {UNPRINTABLE}"),
        ("markup", APPROACH, thought(subtask="\x1b[31m"), rf"'\x1b[31m' {UNPRINTABLE}"),
        boxed("box", (-1, 0, 50, 50), "leaves the frame: coordinates go from 0 to 1000"),
        boxed("box", (0, 0, 50, 1001), "leaves the frame: coordinates go from 0 to 1000"),
        boxed("box", (60, 0, 50, 50), "is empty: wanted [left, top, right, bottom] with left < right and top"),
        boxed("box", (0, 0, 29, 50), "is 29 wide and 50 high: at least 30 each are wanted"),
        boxed("box", (0, 0, 800, 700), "covers 56% of the frame: at most 50% are wanted"),
        boxed("box", (0, 0, 1000, 1000), "is the whole frame: choose the part that matters"),
        ("length", APPROACH, thought("go down"), "thought 1 has 2 words: 3 to 80 are wanted"),
        ("length", APPROACH, thought("? ! ? !"), "thought 1 has 0 words: 3 to 80 are wanted"),
        ("length", APPROACH, thought("word " * 81), "thought 1 has 81 words: 3 to 80 are wanted"),
        ("length", KEY, look(before="look"), "thought 1 has 1 words: 3 to 80 are wanted"),
        ("gripper", APPROACH, thought(gripper="closed"), STATE.format("closed", "open")),
        ("gripper", CARRY, thought(gripper="ajar"), STATE.format("ajar", "closed")),
        ("gripper", APPROACH, thought(next_gripper="open"), COMING.format("open", "closes next: 'close'")),
        ("gripper", KEY, thought(next_gripper="stay"), COMING.format("stay", "closes next: 'close'")),
        ("gripper", CARRY, thought(next_gripper="close"), COMING.format("close", "opens next: 'open'")),
        (
            "gripper",
            RETREAT,
            thought(next_gripper="close"),
            COMING.format("close", "stays as it is to the end: 'stay'"),
        ),
        *(
            ("progress", APPROACH, thought(progress=said), f"progress is {said}: a share from 0 to 1 is wanted")
            for said in (-0.1, 1.5, float("nan"), float("inf"))
        ),
        ("subject", APPROACH, thought(subject=""), "the subject is missing: this sub-task is about 'red block'"),
        ("subject", APPROACH, thought(subject="blue block"), "the subject is 'blue block', but this sub-task is about"),
        *(
            (
                "subject",
                APPROACH,
                thought(subject=said),
                f"the subject {said!r} names no object of the scene: wanted 'red",
            )
            for said in ("block", "mug", "not the red block", "small red block", "red block and blue block")
        ),
        boxed("grounding", (460, 400, 600, 500), "shows 40% of the red block: at least 50% are wanted"),
        boxed("grounding", (300, 100, 800, 1000), "is 45 times as large as the red block: at most 40 times are"),
        boxed("grounding", (0, 0, 60, 60), "shows 0% of the red block: at least 50% are wanted"),
        ("grounding", KEY, look(subject="mug"), "look 1 is at 'mug', which names no object of the scene"),
    ],
)
def test_what_is_wrong_is_said(check: CheckName, index: int, annotation: Annotation, text: str) -> None:
    (said,) = texts(annotation, index, check)
    assert said.startswith(text)


@pytest.mark.parametrize(
    ("check", "index", "annotation", "options", "num_problems"),
    [
        ("markup", KEY, TWICE, {"looks": (0, 2)}, 0),
        ("markup", KEY, thought(), {"looks": (0, 2)}, 0),
        ("markup", KEY, TWICE, {"looks": (0, 1)}, 1),
        ("box", KEY, look(box=(0, 0, 1000, 1000)), {"max_box_area": 1.0}, 1),  # small enough, and refused
        ("box", KEY, look(box=(0, 0, 1000, 999)), {"max_box_area": 1.0}, 0),
        ("box", KEY, look(box=(0, 0, 30, 30)), {}, 0),
        # The sub-task's subject is its last one.
        ("subject", APPROACH, thought(subject="blue block"), {"subjects": ("white bowl", "blue block", "")}, 0),
        ("subject", APPROACH, thought(subject="white bowl"), {"subjects": ("white bowl", "blue block", "")}, 1),
        # Where nobody knows the subject, any object of the scene will do; where nobody knows the scene, anything.
        ("subject", APPROACH, thought(subject="blue block"), {"subjects": ("",) * 8}, 0),
        ("subject", APPROACH, thought(subject=""), {"subjects": ("",) * 8}, 0),
        ("subject", APPROACH, thought(subject="mug"), {"subjects": ("",) * 8}, 1),
        ("subject", APPROACH, thought(subject="mug"), {"subjects": None}, 0),
        # Boxes are known of the first picture alone, and not of a subject that is no object of the scene.
        ("grounding", KEY, look(box=(0, 0, 60, 60), image=1), {}, 0),
        ("grounding", KEY, look(box=(0, 0, 60, 60)), {"subjects": None}, 0),
        ("grounding", KEY, look(subject="drawer handle"), {"subjects": ("drawer handle",) * 8}, 0),
        ("grounding", KEY, thought(subject="mug"), {}, 0),
    ],
)
def test_what_is_wrong_depends_on_config_and_scene(
    check: CheckName, index: int, annotation: Annotation, options: dict[str, Any], num_problems: int
) -> None:
    if (subjects := options.get("subjects")) is not None:
        options = options | {"subjects": (*subjects, *["red block"] * (8 - len(subjects)))}
    assert len(texts(annotation, index, check, **options)) == num_problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("move down down down  Down down", "down"),
        ("go to the go to the go to the go to the go to the bowl", "go to the"),
        ("move dooooooooooown", "o"),
        ("g" + "rasp" * 10, "rasp"),
        ("down down down down", ""),
        ("500 300, 425 100, 350 700. look 500 300", ""),
        ("grasp the akita black bowl, then lift the akita black bowl, then the bowl, the bowl", ""),
    ],
)
def test_a_thought_says_each_thing_once(text: str, said: str) -> None:
    wanted = [f"thought 1 says {said!r} over and over: write each thing once"] if said else []
    assert texts(thought(text), APPROACH, "repetition") == wanted


def test_a_key_frame_in_which_the_gripper_does_nothing_is_asked_about_the_next_change() -> None:
    """As one at which the arm stops, the first, or the last."""
    timeline = replace(takes.timeline(), is_key=(True,) + (False,) * 6 + (True,))
    for index, coming, num_problems in ((0, "close", 0), (0, "open", 1), (7, "stay", 0), (7, "open", 1)):
        said = look(gripper="open", next_gripper=coming)
        assert len(texts(said, index, "gripper", "markup", timeline=timeline)) == num_problems


@pytest.mark.parametrize("phrase", ["The Red_Blocks", "block (red)", "a red block"])
def test_a_name_is_one_in_any_case_order_and_number(phrase: str) -> None:
    assert texts(thought(subject=phrase), APPROACH, "subject") == []


@pytest.mark.parametrize(
    ("said", "meant"),
    [("the Bowl", "white bowl"), ("White bowls", "White bowls"), ("white", "white"), ("block", "block"), ("", "")],
)
def test_a_part_of_one_name_alone_means_the_whole(said: str, meant: str) -> None:
    assert with_whole_name(thought(subject=said), takes.query(APPROACH, of=takes.take())).subject == meant
    assert with_whole_name(thought(subject=said), takes.query(APPROACH)).subject == said  # nobody knows the scene
