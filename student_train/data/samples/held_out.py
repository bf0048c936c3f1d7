"""Samples that are held out of training: a function of each sample's key alone.

The key is a hash of conversation, image files and template. So equal samples are in the same part, whatever store they
are in, and a sample stays in its part when a store grows. A rejected answer is in the part of the chosen one. Samples
with the same image and other conversations may be in both parts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.storage.schema.order import WORD
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.errors import TrainError


def held_out_positions(samples: TrainingSet, share: float | None) -> NDArray[np.int64]:
    """Positions of the samples that are held out, int64, ascending; none without a share.

    Raises:
        TrainError: no sample is held out, or none is left for training.
    """
    return held_out_of(samples.readers, share)


def held_out_of(readers: Sequence[StoreReader], share: float | None) -> NDArray[np.int64]:
    """`held_out_positions` of stores in the order of a `TrainingSet`."""
    if share is None:
        return np.zeros(0, np.int64)
    number = sum(map(len, readers))
    found = np.flatnonzero(_places(readers) < share)
    if not len(found):
        raise TrainError(
            f"train.validation.share {share:g} holds out none of {number} samples; raise it, or give "
            "train.validation.store or train.validation.data instead"
        )
    if len(found) == number:
        raise TrainError(f"train.validation.share {share:g} holds out all {number} samples; lower it")
    return found


def fixed_subset(samples: TrainingSet, positions: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """At most so many of the positions, ascending: those whose keys come first, whatever else is in the stores."""
    if most is None or len(positions) <= most:
        return positions
    found = np.sort(positions[np.argsort(_places(samples.readers)[positions], kind="stable")[:most]])
    pairs = Pairs.of_stores(samples.readers)
    is_cut = pairs.has_partner[found] & ~np.isin(pairs.partner[found], found)
    return found[~is_cut]


def _places(readers: Sequence[StoreReader]) -> NDArray[np.float64]:
    """The key of each sample as a number from 0 to 1, float64 [n]."""
    places = np.concatenate([reader.keys.first_words for reader in readers]) / float(WORD)
    pairs = Pairs.of_stores(readers)
    return np.where(pairs.second, places[pairs.partner], places)
