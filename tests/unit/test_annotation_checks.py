from dataclasses import replace

import pytest

from rlvla.annotation.checks import CHECKS, check_decision
from rlvla.annotation.names import find_name
from rlvla.config import CheckConfig, CheckName
from rlvla.types import Annotation, Box, Timeline
from tests import takes

PLAIN = "write plain text without marks such as <think> or </think>"
APPROACH, KEY, CARRY, OPENING, RETREAT = 0, 2, 3, 5, 6


def texts(
    annotation: Annotation,
    index: int = APPROACH,
    *names: CheckName,
    timeline: Timeline | None = None,
    **take: object,
) -> list[str]:
    """What is wrong with an annotation of the made-up take, by some checks or by all."""
    made_up = takes.take(**take)  # type: ignore[arg-type]
    cfg = CheckConfig(names=names or CheckConfig().names)
    return [p.text for p in check_decision(annotation, made_up, timeline or takes.timeline(), index, cfg)]


@pytest.mark.parametrize(
    ("index", "annotation"),
    [
        (APPROACH, takes.thought("move down to the red block", subtask="grasp the red block", gripper="open")),
        (KEY, takes.look(subtask="grasp the red block", gripper="open", next_gripper="close", progress=0.3)),
        (CARRY, takes.thought("carry it over to the bowl", gripper="closed", next_gripper="open")),
        (CARRY, takes.thought("the gripper is closed on the block and moves above the white bowl", progress=0.5)),
        (OPENING, takes.look("the block is over the bowl: look closely", "open it to let go of the red block")),
        (RETREAT, takes.thought("the red block is in the bowl: move away", subject="red blocks", next_gripper="stay")),
    ],
)
def test_honest_annotations_pass(index: int, annotation: Annotation) -> None:
    assert texts(annotation, index) == []


def test_problems_name_their_check_and_only_wanted_checks_run() -> None:
    bad = takes.thought("up", gripper="closed", progress=7.0, subject="blue block")
    take, timeline = takes.take(), takes.timeline()
    found = check_decision(bad, take, timeline, APPROACH, CheckConfig())
    assert [problem.check for problem in found] == ["length", "gripper", "subject", "progress"]
    assert check_decision(bad, take, timeline, APPROACH, CheckConfig(names=("markup", "repetition"))) == ()
    assert list(CHECKS) == list(CheckConfig().names)


@pytest.mark.parametrize(
    ("index", "annotation", "text"),
    [
        (APPROACH, takes.look(), "there are 1 looks: a decision that is no key frame wants 0"),
        (KEY, takes.thought(), "there are 0 looks: a key frame wants 1"),
        (KEY, takes.look(image=1), "look 1 is at picture 1: pictures are numbered from 0 to 0"),
        (KEY, takes.look(image=-1), "look 1 is at picture -1: pictures are numbered from 0 to 0"),
        (
            KEY,
            takes.look(box=(10, 10, 15, 100)),
            "the zoom tool refuses the box [10, 10, 15, 100] of look 1: bbox is empty or too small",
        ),
        (
            KEY,
            takes.look(before="closer</think><act>"),
            f"thought 1 breaks the markup (</think> inside <act>): {PLAIN}",
        ),
        (KEY, takes.look(after="it is <tool>"), f"thought 2 breaks the markup (<tool> inside <think>): {PLAIN}"),
        (
            APPROACH,
            takes.thought("down</think><act></act>"),
            f"thought 1 breaks the markup (something follows the act): {PLAIN}",
        ),
        (APPROACH, takes.thought("do\u202ewn"), r"'do\u202ewn' holds characters that cannot be printed"),
        (APPROACH, takes.thought(subject="a\x00"), r"'a\x00' holds characters that cannot be printed"),
        (APPROACH, takes.thought(subtask="\x1b[31m"), r"'\x1b[31m' holds characters that cannot be printed"),
    ],
)
def test_markup(index: int, annotation: Annotation, text: str) -> None:
    assert texts(annotation, index, "markup") == [text]
    assert texts(takes.thought("First line.\nIt\u2019s a rosé cup \u2014 5 cm wide\u2026"), APPROACH, "markup") == []


def test_as_many_looks_as_the_config_wants() -> None:
    many = Annotation(thoughts=("here",) * 3, looks=((0, (0, 0, 50, 50)),) * 2)
    cfg = CheckConfig(names=("markup",), looks=(0, 2))
    take, timeline = takes.take(), takes.timeline()
    assert check_decision(many, take, timeline, KEY, cfg) == ()
    assert check_decision(takes.thought(), take, timeline, KEY, cfg) == ()
    assert len(check_decision(many, take, timeline, KEY, replace(cfg, looks=(0, 1)))) == 1


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((0, 0, 30, 30), ""),
        ((-1, 0, 50, 50), "leaves the frame: coordinates go from 0 to 1000"),
        ((0, 0, 50, 1001), "leaves the frame: coordinates go from 0 to 1000"),
        ((60, 0, 50, 50), "is empty: wanted [left, top, right, bottom] with left < right and top < bottom"),
        ((0, 0, 29, 50), "is 29 wide and 50 high: at least 30 each are wanted"),
        ((0, 0, 800, 700), "covers 56% of the frame: at most 50% are wanted"),
        ((0, 0, 1000, 1000), "is the whole frame: choose the part that matters"),
    ],
)
def test_box(box: Box, text: str) -> None:
    assert texts(takes.look(box=box), KEY, "box") == ([f"the box {list(box)} of look 1 {text}"] if text else [])


def test_the_whole_frame_is_refused_even_if_it_is_small_enough() -> None:
    cfg = CheckConfig(names=("box",), max_box_area=1.0)
    whole, most = takes.look(box=(0, 0, 1000, 1000)), takes.look(box=(0, 0, 1000, 999))
    assert len(check_decision(whole, takes.take(), takes.timeline(), KEY, cfg)) == 1
    assert check_decision(most, takes.take(), takes.timeline(), KEY, cfg) == ()


def test_length() -> None:
    wanted = "3 to 80 are wanted"
    assert texts(takes.thought("go down"), APPROACH, "length") == [f"thought 1 has 2 words: {wanted}"]
    assert texts(takes.thought("word " * 81), APPROACH, "length") == [f"thought 1 has 81 words: {wanted}"]
    assert texts(takes.look(before="look"), KEY, "length") == [f"thought 1 has 1 words: {wanted}"]
    assert texts(takes.thought("word " * 80), APPROACH, "length") == []


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
    assert texts(takes.thought(text), APPROACH, "repetition") == wanted


STATE = "but the gripper is {} before this decision"


@pytest.mark.parametrize(
    ("index", "fields", "wrong"),
    [
        (APPROACH, {"gripper": "closed"}, f"gripper is 'closed', {STATE.format('open')}"),
        (CARRY, {"gripper": "ajar"}, f"gripper is 'ajar', {STATE.format('closed')}"),
        (CARRY, {"gripper": " Closed"}, ""),
        (APPROACH, {"next_gripper": "open"}, "next_gripper is 'open', but the gripper closes next: 'close' is wanted"),
        (KEY, {"next_gripper": "stay"}, "next_gripper is 'stay', but the gripper closes next: 'close' is wanted"),
        (CARRY, {"next_gripper": "close"}, "next_gripper is 'close', but the gripper opens next: 'open' is wanted"),
        (
            RETREAT,
            {"next_gripper": "close"},
            "next_gripper is 'close', but the gripper stays as it is to the end: 'stay' is wanted",
        ),
        (RETREAT, {"gripper": "open", "next_gripper": "stay"}, ""),
        (CARRY, {}, ""),
    ],
)
def test_gripper(index: int, fields: dict[str, str], wrong: str) -> None:
    assert texts(takes.thought(**fields), index, "gripper") == ([wrong] if wrong else [])  # type: ignore[arg-type]


def test_a_key_frame_in_which_the_gripper_does_nothing_is_asked_about_the_next_change() -> None:
    """As one at which the arm stops, the first, or the last."""
    timeline = replace(takes.timeline(), is_key=(True,) + (False,) * 6 + (True,))
    for index, state, coming in ((0, "open", "close"), (7, "open", "stay")):
        honest = takes.look(gripper=state, next_gripper=coming)
        assert texts(honest, index, "gripper", "markup", timeline=timeline) == []
        assert len(texts(replace(honest, next_gripper="open"), index, "gripper", timeline=timeline)) == 1


def test_progress_is_a_share() -> None:
    for progress in (-0.1, 1.5, float("nan"), float("inf")):
        assert len(texts(takes.thought(progress=progress), APPROACH, "progress")) == 1
    for progress in (None, 0.0, 1.0):
        assert texts(takes.thought(progress=progress), APPROACH, "progress") == []


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("The Red_Blocks", "red block"),
        ("block (red)", "red block"),
        ("small red block on the table", "red block"),
        ("black bowl", "akita black bowl"),
        ("bowls", "akita black bowl"),
        ("cabinet", "white cabinet"),
        *((phrase, "") for phrase in ("block", "green block", "red", "")),
    ],
)
def test_a_name_is_found_in_any_case_order_and_number(phrase: str, name: str) -> None:
    names = ("red block", "blue block", "akita black bowl", "white cabinet", "white cabinet top region")
    assert find_name(phrase, names) == name


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("The red blocks", ""),
        ("", "the subject is missing: this sub-task is about 'red block'"),
        ("blue block", "the subject is 'blue block', but this sub-task is about 'red block'"),
        ("block", "the subject 'block' names no object of the scene, or several: wanted 'red block'"),
        ("mug", "the subject 'mug' names no object of the scene, or several: wanted 'red block'"),
    ],
)
def test_the_subject_is_that_of_the_sub_task(subject: str, text: str) -> None:
    assert texts(takes.thought(subject=subject), APPROACH, "subject") == ([text] if text else [])


def test_the_sub_task_s_subject_is_its_last_one() -> None:
    subjects = ("white bowl", "blue block", "", *["red block"] * 5)
    assert texts(takes.thought(subject="blue block"), APPROACH, "subject", subjects=subjects) == []
    assert len(texts(takes.thought(subject="white bowl"), APPROACH, "subject", subjects=subjects)) == 1


def test_where_nobody_knows_the_subject_any_object_will_do() -> None:
    for subject, wrong in (("blue block", 0), ("", 0), ("mug", 1)):
        assert len(texts(takes.thought(subject=subject), APPROACH, "subject", subjects=("",) * 8)) == wrong
    assert texts(takes.thought(subject="mug"), APPROACH, "subject", subjects=None) == []


@pytest.mark.parametrize(
    ("look", "text"),
    [
        ({}, ""),
        ({"box": (450, 400, 600, 500)}, ""),
        ({"box": (460, 400, 600, 500)}, "shows 40% of the red block: at least 50% are wanted"),
        ({"box": (300, 100, 800, 1000)}, "is 45 times as large as the red block: at most 40 times are wanted"),
        ({"box": (0, 0, 60, 60)}, "shows 0% of the red block: at least 50% are wanted"),
        ({"box": (0, 0, 60, 60), "image": 1}, ""),
    ],
)
def test_grounding(look: dict, text: str) -> None:
    wanted = [f"the box {list(look['box'])} of look 1 {text}"] if text else []
    assert texts(takes.look(**look), KEY, "grounding") == wanted


def test_looks_that_nobody_can_place() -> None:
    assert texts(takes.look(box=(0, 0, 60, 60)), KEY, "grounding", subjects=None) == []
    assert len(texts(takes.look(subject="mug"), KEY, "grounding")) == 1
    assert texts(takes.thought(subject="mug"), KEY, "grounding") == []
    handle = ("drawer handle",) * 8
    assert texts(takes.look(subject="drawer handle"), KEY, "grounding", subjects=handle) == []
