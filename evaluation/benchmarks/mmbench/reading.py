"""How an answer to a question of MMBench is read: the rules of the official tool, without its question to GPT."""

from collections.abc import Collection, Mapping

from alignkd.evaluation.benchmarks.mmbench.cells import through_xlsx

# E is read too; no question has it, so it is wrong
_LETTERS = ("A", "B", "C", "D", "E")
_FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
# in more words than these, "A" is taken for an article
_MAX_WORDS_WITH_A = 3


def read_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer states, None if no rule finds one.

    In this order: the one letter A to E among the words of the text; the one letter that is there in the first of some
    forms with punctuation, such as "(B)"; the one option whose text is contained in the answer, in any case.

    Args:
        options: text of the options by letter.
    """
    seen = through_xlsx(text)
    words = seen.split()
    return _letter_in(words) or _letter_of_option(seen, options)


def _letter_in(words: Collection[str]) -> str | None:
    plain = [letter for letter in _LETTERS if letter in words]
    if len(plain) == 1 and not ("A" in words and len(words) > _MAX_WORDS_WITH_A):
        return plain[0]
    for form in _FORMS:
        found = [letter for letter in _LETTERS if form.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return None


def _letter_of_option(text: str, options: Mapping[str, str]) -> str | None:
    lowered = text.lower()
    found = [letter for letter, option in options.items() if option.lower() in lowered]
    return found[0] if len(found) == 1 else None
