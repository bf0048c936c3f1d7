"""TextVQA (validation): short answers that are compared with those of ten people."""

from alignkd.evaluation.benchmarks.textvqa.score import score_answers

__all__ = ["score_answers"]
