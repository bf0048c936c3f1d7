"""POPE: whether an object is in the image, in three categories of absent objects."""

from alignkd.evaluation.benchmarks.pope.score import score_answers

__all__ = ["score_answers"]
