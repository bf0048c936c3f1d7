"""MME: two questions of yes or no to each image, in ten categories of perception and four of cognition."""

from alignkd.evaluation.benchmarks.mme.score import score_answers

__all__ = ["score_answers"]
