import pytest

from rlvla.annotation.names import find_name, mentions, name_words, same_name, stem
from rlvla.annotation.words import tokens


def test_names_are_compared_without_case_articles_number_and_order() -> None:
    for other in ("red block", "The Red Blocks", "block, red", "RED_BLOCK"):
        assert same_name("the red block", other)
    for other in ("blue block", "red", "red block 2", ""):
        assert not same_name("the red block", other)
    assert name_words("the Boxes of Berries") == ("box", "of", "berry")
    assert [stem(word) for word in ("glass", "glasses", "dishes", "cans", "grey")] == [
        *("glass", "glass", "dish", "can", "gray"),
    ]


NAMES = ("red block", "blue block", "akita black bowl", "white cabinet", "white cabinet top region")


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("the red block", "red block"),
        ("small red block on the table", "red block"),
        ("black bowl", "akita black bowl"),
        ("bowls", "akita black bowl"),
        ("cabinet", "white cabinet"),
        ("block", ""),
        ("green block", ""),
        ("red", ""),
        ("", ""),
    ],
)
def test_find_name(phrase: str, name: str) -> None:
    assert find_name(phrase, NAMES) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("move the red block to the black bowl", [{"red block"}, {"akita black bowl"}]),
        ("grasp the block", [{"red block", "blue block"}]),
        ("open the white cabinet top region", [{"white cabinet top region"}]),
        ("the arm moves left", []),
    ],
)
def test_mentions(text: str, expected: list[set[str]]) -> None:
    assert [set(one.names) for one in mentions(tokens(text), frozenset(NAMES))] == expected
