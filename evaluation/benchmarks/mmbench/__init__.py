"""MMBench (dev): multiple choice, asked once for every rotation of the options; all rotations must be right."""

from alignkd.evaluation.benchmarks.mmbench.questions import read_questions
from alignkd.evaluation.benchmarks.mmbench.score import score_answers

__all__ = ["read_questions", "score_answers"]
