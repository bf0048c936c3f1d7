"""ScienceQA: multiple choice; the reported number is over the questions with an image."""

from alignkd.evaluation.benchmarks.sqa.questions import read_questions
from alignkd.evaluation.benchmarks.sqa.score import score_answers

__all__ = ["read_questions", "score_answers"]
