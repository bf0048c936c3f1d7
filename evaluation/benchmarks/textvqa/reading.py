"""How an answer to a question of TextVQA is normalised: the processor of the VQA challenge, in its order of steps."""

import re

from alignkd.evaluation.benchmarks.textvqa.contractions import CONTRACTIONS

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# a full stop before no digit; what is before it does not matter
_FULL_STOP = re.compile(r"\.(?!\d)")
# the original passes re.UNICODE, which is 32, where `sub` takes the largest number of replacements
_MAX_FULL_STOPS = 32
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = ("a", "an", "the")


def normalise(text: str) -> str:
    """The text in the form in which answers are compared.

    Lower case; without `,` and `?`; `'s` as a word of its own; the other punctuation deleted or turned into a blank;
    full stops deleted that no digit follows, at most the first 32; number words as digits; without articles;
    contractions with their apostrophes; words joined by one blank.
    """
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    spaced = lowered.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(spaced).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Each mark is deleted if it stands beside a blank anywhere in the text; otherwise it becomes a blank."""
    result = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)
