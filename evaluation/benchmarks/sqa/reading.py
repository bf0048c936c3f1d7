"""How an answer to a question of ScienceQA is read."""

import re

LETTERS = ("A", "B", "C", "D", "E")
# any character but a line break must follow the letter
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def read_letter(text: str) -> str | None:
    """The letter that an answer states, None if there is none; only capitals count.

    In this order: the whole text is a letter A to E; it begins with such a letter, a full stop and a blank; it
    contains "The answer is X" exactly once, with any capital X and another character after it.
    """
    if text in LETTERS:
        return text
    if text[:1] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def read_choice(text: str, num_choices: int) -> int:
    """Index of the choice that an answer states; -1 if it states none, or a letter that the question does not have."""
    letter = read_letter(text)
    return LETTERS.index(letter) if letter in LETTERS[:num_choices] else -1
