"""Criteria for a teacher's log-probabilities of the labels, as pure functions.

Only clear errors fail: differences are compared with their standard errors, and a teacher without information about
the text (random weights: entropy near log V) is not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.tools.verify.advantage import CLEAR_ADVANTAGE
from alignkd.storage.tools.verify.label_shift import CLEAR, MIN_PAIRS, VAGUE, lead

MIN_IMAGES = 32
# minimum advantage of the right images over the wrong ones, in standard errors
SEEING = 2.0

Outcome = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True, kw_only=True)
class SanityFinding:
    """One check and its outcome.

    Attributes:
        name: `batch`, `labels` or `images`; with a counterfactual pass also `advantage`.
        message: one line with the figures, and what to do if the check failed.
    """

    name: str
    outcome: Outcome
    message: str


@dataclass(frozen=True, kw_only=True)
class SampleScores:
    """The teacher's scores at one sample's N supervised positions.

    Attributes:
        own_N: log-probability of the label.
        entropy_N: entropy of the distribution, in nats.
        beside_N2: log-probability of the next and of the previous position's label; NaN if that is the same token or
            there is none.
    """

    own_N: NDArray[np.float64]
    entropy_N: NDArray[np.float64]
    beside_N2: NDArray[np.float64]

    @property
    def is_usable(self) -> bool:
        """Whether there are labels with finite scores; samples without are listed as unusable later."""
        return len(self.own_N) > 0 and bool(np.isfinite(self.own_N).all() and np.isfinite(self.entropy_N).all())


def finding(name: str, passed: bool | None, figures: str, advice: str = "") -> SanityFinding:
    """The finding of a check; `passed` None means that it could not be made."""
    if passed is None:
        return SanityFinding(name=name, outcome="not checked", message=figures)
    if passed:
        return SanityFinding(name=name, outcome="passed", message=figures)
    return SanityFinding(name=name, outcome="failed", message=f"{figures}: {advice}")


def judge_labels(scores: Sequence[SampleScores], vocab_size: int) -> SanityFinding:
    """Check that labels of the next or previous position are not clearly more probable than a position's own."""
    leads, losses = [], []
    for side in (0, 1):
        differences = [found.own_N - found.beside_N2[:, side] for found in scores]
        differences = [values[~np.isnan(values)] for values in differences]
        if (pairs := sum(map(len, differences))) < MIN_PAIRS:
            return finding("labels", None, f"{pairs} labels with differing neighbours, {MIN_PAIRS} are needed")
        leads.append(lead(differences))
        losses.append(-float(np.nanmean(np.concatenate([found.beside_N2[:, side] for found in scores]))))
    own = -float(np.concatenate([found.own_N for found in scores]).mean())
    worst = int(np.argmin(leads))
    beside = ("next", "previous")[worst]
    figures = f"loss {own:.3f} of the labels, {losses[worst]:.3f} of those of the {beside} position"
    # a teacher that predicts neither may seem to prefer one
    if leads[worst] < -CLEAR and losses[worst] < VAGUE * np.log(vocab_size):
        return finding("labels", False, figures, "off by one; check that tokenizer and template belong to the teacher")
    return finding("labels", True if leads[worst] > CLEAR else None, figures)


def judge_shuffled(failed: SanityFinding, shuffled: Sequence[SampleScores], vocab_size: int) -> SanityFinding:
    """The finding of `judge_labels` that failed, after a look at the same samples with the labels in random order.

    No model can predict tokens in random order. A teacher that seems to has the neighbour's label in its input and
    repeats it, as random weights do whose head is the embedding: that shows nothing about the labels' positions.
    """
    if judge_labels(shuffled, vocab_size).outcome != "failed":
        return failed
    return finding("labels", None, "the teacher repeats its input, even tokens in random order, as random weights may")


def judge_images(
    right: Sequence[SampleScores], swapped: Sequence[SampleScores], vocab_size: int, *, left_out: int = 0
) -> SanityFinding:
    """Check that labels are more probable with the right images than with those of other samples.

    Args:
        left_out: number of samples that could not be scored with another image, for example because it makes them too
            long.
    """
    others = f", {left_out} more not scored: unusable with another image" if left_out else ""
    if len(right) < MIN_IMAGES:
        found = f"{len(right)} samples with distinct images{others}, {MIN_IMAGES} are needed"
        return finding("images", None, found)
    entropy = np.concatenate([found.entropy_N for found in right]).mean()
    if entropy > VAGUE * np.log(vocab_size):
        return finding(
            "images", None, f"entropy {entropy:.2f} nats, hardly below log V, so the teacher predicts almost nothing"
        )
    gains = np.array([a.own_N.mean() - b.own_N.mean() for a, b in zip(right, swapped, strict=True)])
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    losses = [-np.mean([found.own_N.mean() for found in scores]) for scores in (right, swapped)]
    if losses[0] > np.log(vocab_size):
        reason = f"loss {losses[0]:.2f} is above log V: it knows none of these answers, as random weights"
        return finding("images", None, reason)
    figures = (
        f"loss {losses[0]:.3f} with the right images, {losses[1]:.3f} with those of other samples "
        f"({len(gains)} samples, difference {gains.mean():.3f} +- {error:.3f}{others})"
    )
    return finding(
        "images",
        bool(gains.mean() > SEEING * error),
        figures,
        "the teacher ignores its images, or they are paired with the wrong samples",
    )


def judge_advantage(advantages: Sequence[NDArray[np.float64]], rounding: float) -> SanityFinding:
    """Check that the replacement of vision tokens changes the probabilities of the labels.

    Args:
        advantages: visual advantage at the supervised positions of each sample with images, in nats.
        rounding: what the rounding of the teacher's dtype explains.
    """
    usable = [values for values in advantages if len(values) and np.isfinite(values).all()]
    if len(usable) < MIN_IMAGES:
        return finding("advantage", None, f"{len(usable)} samples with images, {MIN_IMAGES} are needed")
    values, means = np.concatenate(usable), np.array([values.mean() for values in usable])
    error = means.std(ddof=1) / np.sqrt(len(means))
    figures = (
        f"visual advantage {values.mean():.3f} nats at {len(values)} positions, above {CLEAR_ADVANTAGE} at "
        f"{(values > CLEAR_ADVANTAGE).mean():.0%}, {means.mean():.3f} +- {error:.3f} by sample"
    )
    if np.abs(values).max() <= rounding:
        advice = "the answers do not depend on the image; check that the projector's weights belong to the teacher"
        return finding("advantage", False, figures, advice)
    if means.mean() <= SEEING * error:
        return finding("advantage", None, f"{figures}: the image changes the answers, but not clearly to the better")
    return finding("advantage", True, figures)
