"""How an answer to a question of MME is read."""

_LENGTH = 4


def read_answer(text: str) -> str | None:
    """`yes` or `no` if the first four characters of the lower-cased text contain it, in this order; None for neither.

    So "know" and "not sure" are read as no, "eyes" as yes, and "Y" as neither. Line breaks and tabs, on which the
    original fails, count as blanks.
    """
    start = text.replace("\n", " ").replace("\r", " ").replace("\t", " ").lower()[:_LENGTH]
    return next((word for word in ("yes", "no") if word in start), None)
