"""How an answer to a question of POPE is read."""

_NEGATIVE = ("No", "not", "no")


def is_yes(text: str) -> bool:
    """False if `No`, `not` or `no` is a word of the text before its first full stop; True for every other text.

    Commas are deleted and words end at blanks only: "NO", "Not", "No!" and "" are read as yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in words for word in _NEGATIVE)
