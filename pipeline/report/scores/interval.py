"""How far a score may be from that over further questions of the same kind."""

import math
from typing import NamedTuple

from alignkd.pipeline.report.scores.evaluation import Column, Number

# The number is the mean of scores between 0 and 1 of single questions. Those of the others are not: points and F1, and
# MMBench asks each question several times.
MEANS = ("gqa", "sqa", "textvqa")
_NORMAL_95 = 1.959964


class Interval(NamedTuple):
    """Ends of an interval of 95 %, per cent."""

    low: float
    high: float


def interval_of(column: Column, number: Number) -> Interval | None:
    """Wilson's interval for the questions as a sample; None for a number that is no mean over questions.

    It is too wide for answers that may score between 0 and 1 (TextVQA). It does not contain that another training with
    another seed has another score.
    """
    if number.value is None or number.questions < 1 or not (column.benchmark in MEANS or column.first is not None):
        return None
    share, count, z = number.value / 100.0, number.questions, _NORMAL_95
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(100.0 * max(0.0, middle - half), 100.0 * min(1.0, middle + half))
