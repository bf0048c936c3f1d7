"""The question in a prompt of TextVQA; answers are matched with the annotation by it."""

import re

_OLD_START, _OLD_QUESTION = "OCR tokens: ", re.compile(r"Question: (.*?) Short answer:", re.DOTALL)
_TOKENS = "Reference OCR token:"


def has_tokens(prompt: str) -> bool:
    """Whether a prompt has a line for OCR tokens, which may be empty."""
    return prompt.startswith(_OLD_START) or f"{_TOKENS} " in prompt


def question_of(prompt: str) -> str | None:
    """The question of a prompt in lower case, None if the prompt has none of the known forms.

    The forms: the question, the line of OCR tokens and the instruction; the same with the OCR tokens first; the
    question and the instruction; "OCR tokens: ... Question: ... Short answer:". Where OCR tokens contain line breaks,
    on which the original fails, the question is the line before the OCR tokens, or the one before the instruction.
    """
    if prompt.startswith(_OLD_START):
        found = _OLD_QUESTION.search(prompt)
        return found[1].lower() if found else None
    lines = prompt.split("\n")
    if len(lines) == 2 and not prompt.startswith(_TOKENS):
        return lines[0].lower()
    if len(lines) < 3 or not has_tokens(prompt):
        return None
    if lines[0].startswith(_TOKENS):
        return lines[-2].lower()
    return lines[0].lower() if len(lines) == 3 or lines[1].startswith(_TOKENS) else None
