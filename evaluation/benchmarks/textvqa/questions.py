"""The question file of TextVQA."""

from pathlib import Path

from alignkd.evaluation.question import Question
from alignkd.evaluation.question_lines import read_line_questions


def read_questions(folder: Path) -> list[Question]:
    """The questions of a folder of TextVQA; raises as `read_line_questions`."""
    return read_line_questions(folder, "textvqa")
