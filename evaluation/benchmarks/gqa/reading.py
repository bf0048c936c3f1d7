"""How an answer to a question of GQA is read."""


def read_answer(text: str) -> str:
    """The answer in lower case without full stops at its end; nothing else is changed."""
    return text.rstrip(".").lower()
