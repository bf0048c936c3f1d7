"""DDK's weights of domains (arXiv 2407.16154), in log space: pure functions of n domains' mean losses.

With the ratio of the perplexities g_i = exp(student's mean NLL - teacher's mean NLL) / temperature, the first weights
are softmax(g), and each further measurement gives

    r'_i = alpha * r_i exp(g_i) / sum_j r_j exp(g_j) + (1 - alpha) / n

exp(g_i) alone overflows: a student of 9 nats beside a teacher of 1 has g = 2981.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# exp(700) is finite in float64; differences of ratios beyond it decide nothing any more
MAX_GAP = 700.0


def perplexity_ratios(student_nll: ArrayLike, teacher_nll: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """exp(student - teacher) / temperature of each domain, float64 [n].

    Args:
        student_nll: mean negative log-probability of a label in each domain, in nats, [n]; finite.
        teacher_nll: the same of the teacher.
        temperature: above 0.
    """
    gaps = np.asarray(student_nll, np.float64) - np.asarray(teacher_nll, np.float64)
    ratios: NDArray[np.float64] = np.exp(np.minimum(gaps, MAX_GAP)) / temperature
    return ratios


def first_weights(ratios: ArrayLike) -> NDArray[np.float64]:
    """The weights of the first interval, float64 [n], with the sum 1."""
    return _softmax(np.asarray(ratios, np.float64))


def next_weights(previous: ArrayLike, ratios: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """The weights of the next interval, float64 [n], with the sum 1.

    Args:
        previous: the weights of the interval before it, [n]; a weight of 0 keeps no share but that of all domains.
        ratios: as from `perplexity_ratios`, measured at its end.
        alpha: from 0 (all domains alike) to 1.
    """
    weights = np.asarray(previous, np.float64)
    with np.errstate(divide="ignore"):  # log(0) is -inf, whose softmax is 0
        factors = _softmax(np.log(weights) + np.asarray(ratios, np.float64))
    mixed: NDArray[np.float64] = alpha * factors + (1.0 - alpha) / len(weights)
    return mixed


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(values - values.max())
    softmax: NDArray[np.float64] = shifted / shifted.sum()
    return softmax
