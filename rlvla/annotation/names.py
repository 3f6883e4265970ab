"""Which object of a scene a name means, in any case, order and number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]+|\d+")
_ARTICLES = ("a", "an", "the")


@lru_cache(maxsize=4096)
def name_words(name: str) -> tuple[str, ...]:
    """The words of a name in their order, in lower case, without articles and the s of a plural."""
    words = (word for word in _WORD.findall(name.casefold()) if word not in _ARTICLES)
    return tuple(word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in words)


def find_name(phrase: str, names: Iterable[str]) -> str:
    """Which of the names a phrase means: the same one, else the only one that says more or less of the same thing.

    "Black bowl" and "akita black bowl on the table" both mean "akita black bowl", unless there is another black bowl.

    Returns:
        One of `names`; empty where none fits, or several do.
    """
    wanted, near = name_words(phrase), set[str]()
    for name in names:
        words = name_words(name)
        if sorted(words) == sorted(wanted):
            return name
        if words and words[-1] in wanted and (set(words) <= set(wanted) or set(words) >= set(wanted)):
            near.add(name)
    return near.pop() if len(near) == 1 else ""
