"""POPE: whether an object is in the image, in three categories of absent objects."""

from alignkd.evaluation.benchmarks.pope.questions import read_questions
from alignkd.evaluation.benchmarks.pope.score import score_answers

__all__ = ["read_questions", "score_answers"]
