"""Whether a text is English prose that a policy should learn, rather than markup, code, orders to a model, or babble.

Texts of a model are untrusted: every pattern is bounded, so that time grows linearly with the text, and any string has
an answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from rlvla.annotation.words import group

MIN_SHARE = 0.9
"""Of a text's letters that must be Latin, and of its characters that must be letters, digits or plain punctuation."""
MAX_SYMBOLS = 2
"""That any text may hold, however short."""
MAX_RUN = 4
"""Times that a word or a phrase may stand in a row."""
MAX_REPEATED = 0.4
"""Share of the words of a text that may be one and the same; in English "the" comes to a fifth."""
MAX_WORD = 40
"""Letters of a word; English has no longer one."""
MAX_PHRASE = 8
"""Words of a phrase whose repetitions are looked for."""
MAX_WORDS = 2000
"""Looked at for repetitions."""

_HIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffd\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)
"""Control, zero-width and bidirectional characters, surrogates, private use, what stands for a broken encoding."""
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()/%°+\u2018\u2019\u201c\u201d\u2013\u2014\u2026-]")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile("[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]")
_WORD = re.compile(r"[^\W_]+")
_STRETCH = re.compile(r"(.)\1{11}")

_ORDER = "an order to a model"
_FOREIGN = {
    "a code fence": r"```|~~~",
    "a link": r"https?:|://|\bwww\.|\.(?:com|org|net|io|dev|ru|cn|html?|php)\b",
    "a tag": r"<[/a-z!?|]|&(?:#\d{1,7}|#x[0-9a-f]{1,6}|lt|gt|amp|quot|nbsp);",
    "a mark of a chat template": r"<\||\|>|\[/?(?:inst|sys)\]|<</?sys>>"
    r"|### ?(?:instruction|response|input|human|assistant)"
    r"|\b(?:system|assistant|developer) ?:|(?:^|[.!?;\])\"'] ?)(?:user|human|model|ai) ?:",
    "data instead of prose": r"[{\[] ?\"|\"\w{1,40}\" ?:",
    _ORDER: (
        r"\b(?:ignore|disregard|forget|override|bypass|discard|neglect)(?: (?:all|any|every|each|the|your|my|our|its|of"
        r"|these|those|this|that|previous|prior|above|earlier|preceding|former|foregoing|original|initial|system|given"
        r"|other|such|safety)){0,6} (?:instructions?|prompts?|rules?|guidelines?|directions|directives?|messages?"
        r"|commands|constraints?)\b"
        r"|\b(?:ignore|disregard|forget) (?:everything|anything|all of|what|the above|all (?:previous|prior|above))\b"
        r"|\bfrom now on,? you\b|\bjailbreak"
        r"|\byou are (?:now )?(?:an? )?(?:\w{1,20} )?(?:ai|assistant|chatbot|language model|llm)\b"
        r"|\bact as (?:an? )?(?:ai|assistant|chatbot|expert|hacker|admin)|\bpretend (?:to be|that|you)\b"
        r"|\b(?:system|hidden|secret|developer|original) prompt\b|\bnew (?:instructions?|task|rules) ?:"
        r"|\bdeveloper mode\b|\bdo anything now\b|\bdo not follow (?:the|any|your|these)\b"
        r"|\bfollow these instructions\b"
        r"|\b(?:reveal|print|repeat|output|show|leak) (?:me )?(?:your|the) (?:\w{1,20} )?(?:prompts?|instructions?)\b"
        r"|\b(?:respond|reply|answer) (?:only )?(?:with|in|as|using)\b|\boutput (?:only|json|exactly)\b"
        r"|\bas an? (?:ai|language model|llm)\b|\bi(?: am|'m) (?:an? )?(?:ai|assistant|language model)\b"
        r"|\bi(?: am|'m) sorry,? but\b|\bi (?:cannot|can't|can not) (?:assist|help|comply|fulfil)"
        r"|\bnote to (?:the )?(?:model|ai|assistant|annotator|grader|reader)\b"
        r"|\bthis (?:annotation|answer|response) (?:is|must be|should be) (?:correct|valid|accepted|right)\b"
    ),
}
_PATTERNS = {flaw: re.compile(pattern) for flaw, pattern in _FOREIGN.items()}
_ORDERLY = group("""ignore disregard forget override bypass discard neglect you jailbreak act pretend prompt new mode
    anything follow reveal print repeat output show leak respond reply answer as am m sorry cannot can note annotation
    response""")
"""One of these is in every order."""
_STRANGE = re.compile(r"[`~<|>\[\]{}&#:]|\.\w|www")
"""One of these is in everything else that is not prose, and few are in prose; so most texts are read but once."""


def flaws(text: str) -> Iterator[str]:
    """What keeps a text from being plain English prose, in words for its author; nothing is wrong with an empty one."""
    if hidden := _HIDDEN.search(text):
        yield f"it holds the character U+{ord(hidden.group()):04X}: write visible characters only"
    folded = " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).lower().split())
    if not folded:
        return
    words = _WORD.findall(folded)
    is_strange, is_orderly = _STRANGE.search(folded) is not None, not _ORDERLY.isdisjoint(words)
    for flaw, pattern in _PATTERNS.items():
        if (is_orderly if flaw == _ORDER else is_strange) and (found := pattern.search(folded)):
            yield f"it holds {flaw}, {found.group()[:60]!r}: write about the scene and the robot only"
    yield from _foreign(text)
    yield from _babble(folded, words)


def _foreign(text: str) -> Iterator[str]:
    if text.isascii():
        is_english = _LETTER.search(text) is not None
    else:
        num_latin = len(_LATIN.findall(text))
        is_english = num_latin > 0 and num_latin >= MIN_SHARE * len(_LETTER.findall(text))
    if not is_english:
        yield f"less than {MIN_SHARE:.0%} of its letters are Latin: write English"
    if (num_symbols := len(_SYMBOL.findall(text))) > max(MAX_SYMBOLS, (1 - MIN_SHARE) * len(text)):
        yield f"{num_symbols} of its {len(text)} characters are symbols: write words"


def _babble(text: str, words: list[str]) -> Iterator[str]:
    if (longest := max(map(len, words), default=0)) > MAX_WORD:
        yield f"it holds a word of {longest} letters: write English words"
    if _STRETCH.search(text):
        yield "it repeats one character over and over: write sentences"
    if phrase := _loop(words[:MAX_WORDS]):
        yield f"it says {phrase[:60]!r} over and over: write each thing once"


def _loop(words: list[str]) -> str:
    """A phrase that stands more than MAX_RUN times in a row, or a word that is much of a long text; else empty."""
    num_repeated = len(words) - len(set(words))
    for length in range(1, min(MAX_PHRASE, num_repeated // MAX_RUN) + 1):
        run = 0
        for at in range(length, len(words)):
            run = run + 1 if words[at] == words[at - length] else 0
            if run == MAX_RUN * length:
                return " ".join(words[at - length + 1 : at + 1])
    if num_repeated < MAX_REPEATED * len(words) or len(words) <= 3 * MAX_RUN:
        return ""
    word, count = Counter(words).most_common(1)[0]
    return word if count > MAX_REPEATED * len(words) and not word.isdigit() else ""
