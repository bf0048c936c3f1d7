"""Words of a text, for the search in conversations.

A word is a run of letters and digits. Case, and accents of Latin, Greek and Cyrillic letters, do not count. Scripts
without blanks between words (Chinese, Japanese, Thai and others) are searched letter by letter, so that any part of a
text is found. SQLite's tokenizer `ascii` splits the output of `search_text` into exactly `words_of`.
"""

import re
import unicodedata
from dataclasses import dataclass

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_NO_WORD = re.compile(r"[\W_]+")
# Thai, Lao, Burmese, Khmer, kana, Han
_SINGLE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_TERM = re.compile(r'"([^"]*)"|([^\s"]+)')


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """Words that must follow one another; with `is_prefix` the last may be the beginning of a longer word."""

    words: tuple[str, ...]
    is_prefix: bool


def search_text(text: str) -> str:
    """The text in the form that is indexed."""
    if text.isascii():
        return text
    # a compatibility form may be an upper-case letter, whose lower case may have another form
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    folded = _ACCENTS.sub("", folded)
    return _SINGLE.sub(r" \g<0> ", _NO_WORD.sub(" ", unicodedata.normalize("NFC", folded)))


def words_of(text: str) -> list[str]:
    """The words of a text in order."""
    found = search_text(text)
    return _ASCII_WORD.findall(found.lower()) if found.isascii() else found.split()


def phrases_of(query: str) -> list[Phrase] | None:
    """What a query asks for: all words must be found, and words in double quotes one after the other.

    `cat*` finds every word that begins with `cat`.

    Returns:
        None if the query has characters but no word, so that nothing is found; an empty list for a blank query.
    """
    found = []
    for quoted, plain in _TERM.findall(query):
        if words := words_of(quoted or plain):
            found.append(Phrase(words=tuple(words), is_prefix=plain.endswith("*")))
    return found if found or not query.strip() else None


def fts_query(phrases: list[Phrase]) -> str:
    """The query in the language of FTS5; words consist of letters and digits, so nothing can be injected."""
    return " AND ".join(f'"{" ".join(one.words)}"' + (" *" if one.is_prefix else "") for one in phrases)


def matches(words: list[str], phrase: Phrase) -> bool:
    """Whether a text with these words holds a phrase; the same as the search of FTS5."""
    length = len(phrase.words)
    for start in range(len(words) - length + 1):
        found = words[start : start + length]
        if tuple(found[:-1]) != phrase.words[:-1]:
            continue
        if found[-1] == phrase.words[-1] or (phrase.is_prefix and found[-1].startswith(phrase.words[-1])):
            return True
    return False
