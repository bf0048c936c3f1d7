"""GQA (testdev balanced): short answers that must equal the expected one."""

from alignkd.evaluation.benchmarks.gqa.score import score_answers

__all__ = ["score_answers"]
