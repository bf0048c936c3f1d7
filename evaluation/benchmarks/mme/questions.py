"""The question file of MME."""

from pathlib import Path

from alignkd.evaluation.question import Question
from alignkd.evaluation.question_lines import read_line_questions


def read_questions(folder: Path) -> list[Question]:
    """The questions of a folder of MME; raises as `read_line_questions`."""
    return read_line_questions(folder, "mme")
