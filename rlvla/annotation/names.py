"""Names of objects in any case, order and number, and where a text mentions which object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rlvla.annotation.words import ARTICLES

_WORD = re.compile(r"[^\W\d_]+|\d+")
_MAX_CHARS = 500
"""Read of a name."""
_MAX_MODIFIERS = 5
"""Words in front of a noun that may belong to its name."""


@lru_cache(maxsize=4096)
def stem(word: str) -> str:
    """The singular of an English noun, near enough for two spellings to meet."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return "gray" if word == "grey" else word


@lru_cache(maxsize=4096)
def name_words(name: str) -> tuple[str, ...]:
    """The singular words of a name in their order, without articles."""
    return tuple(stem(word) for word in _WORD.findall(name[:_MAX_CHARS].casefold()) if word not in ARTICLES)


def same_name(first: str, second: str) -> bool:
    """Whether two names agree up to case, articles, number and the order of words."""
    return sorted(name_words(first)) == sorted(name_words(second))


def find_name(phrase: str, names: Iterable[str]) -> str:
    """Which of the names a phrase means: the same one, else the only one that says more or less of the same thing.

    Returns:
        One of `names`; empty where none fits, or several do.
    """
    names = tuple(dict.fromkeys(names))
    wanted = name_words(phrase)
    for name in names:
        if sorted(name_words(name)) == sorted(wanted):
            return name
    found = set(wanted)
    near = [name for name in names if _is_near(found, name_words(name))]
    return near[0] if len(near) == 1 else ""


def _is_near(found: set[str], words: tuple[str, ...]) -> bool:
    """As "black bowl" or "akita black bowl on the table" for "akita black bowl"; its noun has to be there."""
    return bool(words) and words[-1] in found and (found <= set(words) or found >= set(words))


@dataclass(frozen=True, slots=True)
class Mention:
    """Words of a text that may mean an object of the scene."""

    start: int
    """First word, a modifier or the noun."""
    end: int
    """Exclusive: behind the noun."""
    words: frozenset[str]
    """Those of them that belong to a name."""
    names: frozenset[str]
    """The objects that they may mean."""
    is_full: bool
    """Whether they say the whole name."""


def mentions(text: Sequence[str], names: frozenset[str]) -> list[Mention]:
    """Where a tokenised text may mention objects: at the last word of a name, with the modifiers before it."""
    nouns = _nouns(names)
    stems = [stem(word) for word in text]
    found = [_mention(stems, at, nouns[word]) for at, word in enumerate(stems) if word in nouns]
    spans = {(one.start, one.end) for one in found}
    return [one for one in found if not any(_is_inside(one, span) for span in spans)]


@lru_cache(maxsize=64)
def _nouns(names: frozenset[str]) -> dict[str, dict[str, frozenset[str]]]:
    """Last word of names -> name -> all its words."""
    nouns: dict[str, dict[str, frozenset[str]]] = {}
    for name in sorted(names):
        if words := name_words(name):
            nouns.setdefault(words[-1], {})[name] = frozenset(words)
    return nouns


def _mention(stems: Sequence[str], at: int, named: dict[str, frozenset[str]]) -> Mention:
    vocabulary = frozenset().union(*named.values())
    start = at
    while start and at - start < _MAX_MODIFIERS and (stems[start - 1] in vocabulary or stems[start - 1] == "and"):
        start -= 1
    while stems[start] == "and":
        start += 1
    words = frozenset(stems[start : at + 1]) & vocabulary
    full = frozenset(name for name, own in named.items() if own == words)
    return Mention(
        start=start,
        end=at + 1,
        words=words,
        names=full or frozenset(name for name, own in named.items() if own >= words) or frozenset(named),
        is_full=bool(full),
    )


def _is_inside(one: Mention, span: tuple[int, int]) -> bool:
    """As "cabinet" in "top region of the cabinet" is no object of its own."""
    return span[0] <= one.start and one.end <= span[1] and one.end - one.start < span[1] - span[0]
