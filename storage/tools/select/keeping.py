"""Which samples are kept: pure functions of one score for each sample.

n samples. A score of NaN means that a sample has none.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

# a product of share and number that differs from a whole number by rounding is that number: 0.29 * 100 is 29
DIGITS = 6


def share_of(ratio: float, number: int) -> int:
    """floor(ratio * number), where the ratio is the decimal number that was written."""
    return math.floor(round(ratio * number, DIGITS))


def difference_scores(reference_mean_nll: ArrayLike, teacher_mean_nll: ArrayLike) -> NDArray[np.float64]:
    """The score of MiniPLM (arXiv 2410.17215): how much better the teacher predicts a sample than the reference.

    Args:
        reference_mean_nll: mean negative log-probability of a label for the reference model, in nats, [n].
        teacher_mean_nll: the same for the teacher. Both are means per label, so that the length of an answer does not
            count.

    Returns:
        float64 [n].
    """
    return np.asarray(reference_mean_nll, np.float64) - np.asarray(teacher_mean_nll, np.float64)


def top_share(scores: ArrayLike, ratio: float) -> NDArray[np.int64]:
    """The floor(ratio * n) samples with the highest scores, as ascending positions, int64.

    Of equal scores the sample that comes first is kept first, so the result is the same on every machine.

    Args:
        scores: [n], none is NaN.
        ratio: from 0 to 1.
    """
    values = np.asarray(scores, np.float64)
    first = np.argsort(-values, kind="stable")[: share_of(ratio, len(values))]
    return np.sort(first).astype(np.int64)


def within(scores: ArrayLike, *, least: float = -math.inf, most: float = math.inf) -> NDArray[np.int64]:
    """The samples whose score is at least `least` and at most `most`, as ascending positions, int64."""
    values = np.asarray(scores, np.float64)
    return np.flatnonzero((values >= least) & (values <= most)).astype(np.int64)
