"""Bootstrap intervals over seeds and scenes, for rows whose seeds are paired.

A draw resamples the seeds with replacement, and independently the scenes: questions about one scene are not independent
of each other, so a scene is drawn with all its questions. All rows and the teacher get the same draw, because students
of one seed share their weights and batches, and all models answer the same questions. The intervals are rather too
wide than too narrow: resampling two factors counts the noise of single answers up to three times (Owen, The pigeonhole
bootstrap, 2007).

The percentile interval of few seeds is too narrow, since the spread of a resample of n values is that of the values
times sqrt((n - 1) / n), and since the normal distribution stands for Student's t. The percentiles are therefore moved
outward ("expanded percentile interval": Hesterberg, What Teachers Should Know About the Bootstrap, 2015, section 5.2).

Shape letters: S seeds, C scenes, B draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from alignkd.pipeline.demo.evaluate import Answer, Evaluation
from alignkd.pipeline.demo.results.figures import visual
from alignkd.vlm.errors import InputError

Floats = NDArray[np.float64]
LEVEL = 0.95
DRAWS = 4000
_SEED = 2026


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the ends of its interval of 95 %, which are None where the draws do not give one."""

    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class RightAnswers:
    """Right answers of paired students to questions that need the picture, by scene.

    Attributes:
        right_SC: number of right answers of each seed, float64 [S, C].
        asked_C: number of questions, float64 [C].
    """

    right_SC: Floats
    asked_C: Floats

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation]) -> "RightAnswers":
        """Count the answers of one model per seed.

        Raises:
            InputError: the models were asked different questions.
        """
        answers = [visual(evaluation.answers) for evaluation in evaluations]
        if len({tuple(answer.id for answer in given) for given in answers}) != 1:
            raise InputError("evaluations of one row: different questions; evaluate all seeds on the same data")
        numbers = scene_numbers(answers[0])
        size = int(numbers.max()) + 1
        right = [np.bincount(numbers, weights=[answer.right for answer in given], minlength=size) for given in answers]
        return cls(right_SC=np.stack(right), asked_C=np.bincount(numbers, minlength=size).astype(np.float64))


def scene_numbers(answers: Sequence[Answer]) -> NDArray[np.int64]:
    """Number of the scene of each answer, int64, in the order of first appearance; a scene is one picture."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(answer.images, len(numbers)) for answer in answers], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How often each seed and each scene is in each draw, float64 [B, S] and [B, C]."""

    seeds_BS: Floats
    scenes_BC: Floats

    @classmethod
    def make(cls, num_seeds: int, num_scenes: int, *, draws: int = DRAWS, seed: int = _SEED) -> "Draws":
        """Draw seeds and scenes; a pure function of the arguments."""
        rng = np.random.default_rng(seed)

        def times(size: int) -> Floats:
            return rng.multinomial(size, np.full(size, 1 / size), size=draws).astype(np.float64)

        return cls(seeds_BS=times(num_seeds), scenes_BC=times(num_scenes))

    def accuracies(self, row: RightAnswers) -> Floats:
        """Accuracy of a row in each draw, float64 [B]; a row of one seed, as the teacher, has the same in all seeds."""
        seeds_BS = self.seeds_BS if len(row.right_SC) > 1 else np.ones((len(self.seeds_BS), 1))
        right_B = ((seeds_BS @ row.right_SC) * self.scenes_BC).sum(axis=1)
        asked_B = seeds_BS.sum(axis=1) * (self.scenes_BC @ row.asked_C)
        accuracy_B: Floats = right_B / asked_B
        return accuracy_B


def intervals(
    rows: Mapping[str, Sequence[Evaluation]], teacher: Evaluation, *, base: str, partners: Mapping[str, str]
) -> dict[str, tuple[Interval | None, Interval | None]]:
    """Share of the gap, and difference to its partner, of every row except `base`.

    Args:
        rows: name -> one evaluation per seed; the seeds of all rows are the same, in the same order.
        teacher: the teacher's answers to the same questions.
        base: name of the row at which the gap begins.
        partners: name of a row -> name of the row with which it is compared.

    Returns:
        Per row its share of the way from `base` to the teacher, None if that way has no positive length, and its
        accuracy less that of its partner, None if the partner is not among `rows`.
    """
    found = {name: RightAnswers.of(evaluations) for name, evaluations in rows.items()}
    top, start = RightAnswers.of([teacher]), found[base]
    num_seeds = len(start.right_SC)
    draws = Draws.make(num_seeds, len(start.asked_C))
    means = {name: _mean(row) for name, row in found.items()}
    drawn = {name: draws.accuracies(row) for name, row in found.items()}
    gap, gap_B = _mean(top) - means[base], draws.accuracies(top) - drawn[base]
    result: dict[str, tuple[Interval | None, Interval | None]] = {}
    for name in rows.keys() - {base}:
        share = None
        if gap > 0:
            # a share of a gap that may be negative has no interval
            shares_B = (drawn[name] - drawn[base]) / gap_B if (gap_B > 0).all() else None
            share = interval((means[name] - means[base]) / gap, shares_B, num_seeds)
        partner, difference = partners[name], None
        if partner in rows:
            difference = interval(means[name] - means[partner], drawn[name] - drawn[partner], num_seeds)
        result[name] = share, difference
    return result


def interval(estimate: float, drawn_B: Floats | None, num_seeds: int) -> Interval:
    """The expanded percentile interval; without ends for one seed, whose spread is unknown."""
    if num_seeds < 2 or drawn_B is None:
        return Interval(estimate=estimate, low=None, high=None)
    tail = expanded_tail(num_seeds)
    low, high = np.quantile(drawn_B, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high))


def expanded_tail(num_seeds: int) -> float:
    """Share of the draws below the lower end of the interval, 0..0.025."""
    quantile = float(student_t.ppf((1 + LEVEL) / 2, num_seeds - 1))
    return NormalDist().cdf(-sqrt(num_seeds / (num_seeds - 1)) * quantile)


def _mean(row: RightAnswers) -> float:
    return float(row.right_SC.sum() / (len(row.right_SC) * row.asked_C.sum()))
