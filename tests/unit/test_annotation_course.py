import time
from dataclasses import replace

from rlvla.annotation.course import check_course
from rlvla.config import CheckConfig, CheckName
from rlvla.types import Annotation
from tests import takes


def blamed(
    name: CheckName, annotations: dict[int, Annotation], *, known: bool = False, **cfg: object
) -> dict[int, str]:
    """Decision -> what one check finds wrong in the made-up take."""
    length = max(8, *annotations) + 1
    switches = (*takes.SWITCHES, *takes.idle(length - 8))
    found = check_course(
        annotations,
        takes.take(("red block",) * length if known else None, length=length),
        takes.timeline(switches),
        CheckConfig(names=(name,), **cfg),  # type: ignore[arg-type]
    )
    assert all(problem.check == name for problems in found.values() for problem in problems)
    return {index: problems[0].text for index, problems in found.items()}


def subjects(*names: str, start: int = 0) -> dict[int, Annotation]:
    return {index: takes.thought(subject=name) for index, name in enumerate(names, start)}


def progress(*values: float | None) -> dict[int, Annotation]:
    return {index: takes.thought(progress=value) for index, value in enumerate(values)}


def thoughts(*texts: str) -> dict[int, Annotation]:
    return {index: takes.thought(text) for index, text in enumerate(texts)}


def test_the_key_frame_decides_on_the_subject() -> None:
    found = blamed("subject", subjects("mug", "mug", "red block", "bowl", "bowl", "the Bowls"))
    wanted = "a sub-task has one, and it is 'red block' at the key frame that ends it, decision 3"
    assert found == {0: f"the subject is 'mug': {wanted}", 1: f"the subject is 'mug': {wanted}"}


def test_without_the_key_frame_most_decide_and_the_first_of_equals() -> None:
    assert list(blamed("subject", subjects("mug", "red block"))) == [1]
    assert list(blamed("subject", subjects("mug", "bowl", start=3))) == [4]
    tail = subjects("mug", "bowl", "bowl", start=6)
    assert blamed("subject", tail) == {
        6: "the subject is 'mug': a sub-task has one, and it is 'bowl' at most of its decisions"
    }


def test_who_names_no_subject_contradicts_nobody() -> None:
    assert blamed("subject", subjects("mug", "", "", "", "bowl", "bowl")) == {}


def test_another_name_of_the_same_object_is_the_same_subject() -> None:
    names = subjects("red block", "small red block", "block, red")
    assert list(blamed("subject", names)) == [1]
    assert blamed("subject", names, known=True) == {}


def test_the_fewest_are_blamed_for_progress() -> None:
    found = blamed("progress", progress(0.1, 0.9, 0.2, None, 0.3, 0.25, 0.4))
    assert found == {
        1: "progress is 0.90, but 0.20 at decision 3 behind: it must not fall",
        5: "progress is 0.25, but 0.30 at decision 5 before: it must not fall",
    }
    assert blamed("progress", progress(None, 0.0, 0.5, 0.5, None, 1.0)) == {}
    assert blamed("progress", progress(float("nan"), 0.5, float("inf"), 0.6)) == {}


def test_who_contradicts_a_trusted_decision_is_to_blame_for_progress() -> None:
    values = progress(0.1, 0.6, 0.7, 0.8, 0.5, 0.9)
    cfg = CheckConfig(names=("progress",))
    for trusted, wanted in (((), [4]), ((4,), [1, 2, 3]), ((2, 5), [4]), ((0, 4, 5), [1, 2, 3])):
        assert list(check_course(values, takes.take(), takes.timeline(), cfg, trusted=trusted)) == wanted


def test_a_long_row_of_equal_thoughts_is_found() -> None:
    same = "Move down to the red block."
    found = blamed("repetition", thoughts(same, same, "  move DOWN, to the red block", same, same, same, "lift it up"))
    assert list(found) == [4, 5]
    assert found[4] == (
        "'Move down to the red block.' is nearly what 4 decisions beside it think: at most 4 in a row may, "
        "say what is new here"
    )
    assert blamed("repetition", thoughts(same, same, same, same, "now close the fingers", same, same)) == {}


def test_a_row_that_a_trusted_decision_ends_is_found_before_it() -> None:
    said = thoughts(*["move down to it"] * 7)
    cfg = CheckConfig(names=("repetition",))
    for trusted, wanted in (((4,), [3, 5, 6]), ((3, 4), [2, 5, 6]), ((4, 5, 6), [1, 2, 3]), (range(7), [])):
        assert list(check_course(said, takes.take(), takes.timeline(), cfg, trusted=trusted)) == wanted


def test_the_same_conclusion_at_a_key_frame_counts() -> None:
    run = {index: takes.thought("move down to it") for index in range(6)}
    run[2] = takes.look("is it between the fingers", "move down to it")
    assert list(blamed("repetition", run)) == [4, 5]


def test_nearly_the_same_is_the_same_unless_numbers_differ() -> None:
    text = "the gripper is still {} cm above the red block and moves down in order to get its fingers around the rim {}"
    near = thoughts(*(text.format(9, ending) for ending in ("now", "then", "soon", "here", "next", "again")))
    assert list(blamed("repetition", near)) == [4, 5]
    assert blamed("repetition", thoughts(*(text.format(cm, "now") for cm in (12, 11, 10, 9, 8, 7)))) == {}
    assert blamed("repetition", near, similarity=1.0) == {}


def test_only_wanted_checks_run_and_problems_come_in_order() -> None:
    bad = {
        index: takes.thought(subject=name, progress=value) for index, name, value in [(1, "mug", 0.2), (0, "red", 0.9)]
    }
    take, timeline = takes.take(None), takes.timeline()
    found = check_course(bad, take, timeline, CheckConfig())
    assert {index: [problem.check for problem in problems] for index, problems in found.items()} == {
        1: ["subject", "progress"]
    }
    assert check_course(bad, take, timeline, CheckConfig(names=("markup",))) == {}
    assert check_course({}, take, timeline, CheckConfig()) == {}


def test_time_grows_little_with_the_take() -> None:
    def seconds(length: int) -> float:
        long = replace(takes.thought("a b c d e f g h " * 25), progress=0.5)
        varied = {index: replace(long, thoughts=(long.thoughts[0] + "xyz"[index % 3],)) for index in range(length)}
        take, timeline = takes.take(None, length=length), takes.timeline(takes.idle(length))
        started = time.process_time()
        check_course(varied, take, timeline, CheckConfig())
        return time.process_time() - started

    assert min(seconds(1000) for _ in range(3)) < 0.5
