import pytest

from rlvla.annotation.checks import check_decision
from rlvla.config import CheckConfig, CheckName
from rlvla.types import Annotation
from tests import takes

APPROACH, KEY, CARRY = 0, 2, 3


def texts(
    name: CheckName, annotation: Annotation, index: int = APPROACH, subjects: object = takes.SUBJECTS
) -> list[str]:
    """What one check finds wrong with an annotation of the made-up take."""
    take = takes.take(subjects)  # type: ignore[arg-type]
    cfg = CheckConfig(names=(name,))
    return [problem.text for problem in check_decision(annotation, take, takes.timeline(), index, cfg)]


@pytest.mark.parametrize("subject", ["red block", "The red blocks", "block (red)", "small red block"])
def test_a_subject_is_named_in_one_s_own_way(subject: str) -> None:
    assert texts("subject", takes.thought(subject=subject)) == []


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("", "the subject is missing: this sub-task is about 'red block'"),
        ("blue block", "the subject is 'blue block', but this sub-task is about 'red block'"),
        ("block", "the subject 'block' names no object of the scene, or several: wanted 'red block'"),
        ("mug", "the subject 'mug' names no object of the scene, or several: wanted 'red block'"),
    ],
)
def test_the_subject_is_that_of_the_sub_task(subject: str, text: str) -> None:
    assert texts("subject", takes.thought("move down a little", subject=subject)) == [text]


def test_the_sub_task_s_subject_is_its_last_one() -> None:
    subjects = ("white bowl", "blue block", "", *["red block"] * 5)
    assert texts("subject", takes.thought(subject="blue block", text="go on"), subjects=subjects) == []
    assert len(texts("subject", takes.thought(subject="white bowl", text="go on"), subjects=subjects)) == 1


def test_where_nobody_knows_the_subject_any_object_will_do() -> None:
    assert texts("subject", takes.thought(subject="blue block"), subjects=("",) * 8) == []
    assert texts("subject", takes.thought(subject=""), subjects=("",) * 8) == []
    assert len(texts("subject", takes.thought(subject="mug"), subjects=("",) * 8)) == 1
    assert texts("subject", takes.thought(subject="mug"), subjects=None) == []


@pytest.mark.parametrize(
    ("index", "text", "subtask"),
    [
        (APPROACH, "move down a little", ""),
        (APPROACH, "move to the block", ""),
        (APPROACH, "move past the blue block to the red one", "grasp the red block"),
        (APPROACH, "move away from the white bowl", ""),
        (APPROACH, "it is right behind the white bowl, go on", ""),
        (APPROACH, "the white bowl is in the way, go around it", "grasp the red block"),
        (CARRY, "lift it and move to the white bowl", ""),
        (CARRY, "move above the white bowl", ""),
        (CARRY, "carry the red block to the white bowl", "put it into the white bowl"),
    ],
)
def test_words_may_mention_other_objects(index: int, text: str, subtask: str) -> None:
    assert texts("subject", takes.thought(text, subtask=subtask), index) == []


@pytest.mark.parametrize(
    ("index", "text", "subtask", "other"),
    [
        (APPROACH, "move to the blue block", "", "blue block"),
        (APPROACH, "move down a little", "grasp the blue block", "blue block"),
        (APPROACH, "move to the blue block and grasp it", "", "blue block"),
        (APPROACH, "go down and grasp the blue block", "grasp the red block", "blue block"),
        (CARRY, "carry the blue block to the white bowl", "", "blue block"),
        (CARRY, "the blue block hangs from the gripper", "", "blue block"),
        (CARRY, "close on the white bowl", "", "white bowl"),
    ],
)
def test_words_about_another_object_are_found(index: int, text: str, subtask: str, other: str) -> None:
    wanted = f"the words are about {other!r}, but this sub-task is about 'red block'"
    assert texts("subject", takes.thought(text, subtask=subtask), index) == [wanted]


def test_grounding() -> None:
    assert texts("grounding", takes.look(), KEY) == []
    assert texts("grounding", takes.look(box=(450, 400, 600, 500)), KEY) == []
    assert texts("grounding", takes.look(box=(460, 400, 600, 500)), KEY) == [
        "the box [460, 400, 600, 500] of look 1 shows 40% of the red block: at least 50% are wanted"
    ]
    assert texts("grounding", takes.look(box=(300, 100, 800, 1000)), KEY) == [
        "the box [300, 100, 800, 1000] of look 1 is 45 times as large as the red block: at most 40 times are wanted"
    ]
    assert len(texts("grounding", takes.look(box=(0, 0, 60, 60)), KEY)) == 1


def test_looks_that_nobody_can_place() -> None:
    assert texts("grounding", takes.look(box=(0, 0, 60, 60)), KEY, subjects=None) == []
    assert texts("grounding", takes.look(box=(0, 0, 60, 60), image=1), KEY) == []
    assert len(texts("grounding", takes.look(subject="mug"), KEY)) == 1
    assert texts("grounding", takes.thought(subject="mug"), KEY) == []
    handle = ("drawer handle",) * 8
    assert texts("grounding", takes.look(subject="drawer handle"), KEY, subjects=handle) == []
