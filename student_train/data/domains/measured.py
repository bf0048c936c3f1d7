"""Which samples measure the loss of a domain: a function of their keys, held out of training."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader


def measured_samples(
    keys: NDArray[np.uint64], has_labels: NDArray[np.bool_], domain: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """The samples of a domain that measure it: those whose keys come first; int64, ascending.

    Args:
        keys: the first word of each sample's key, for all samples of the run.
        has_labels: whether each sample has a label; the others measure nothing.
        domain: positions of its samples.
        most: how many are chosen at most.
    """
    able = domain[has_labels[domain]]
    return np.sort(able[np.argsort(keys[able], kind="stable")[:most]])


def first_words(readers: Sequence[StoreReader]) -> NDArray[np.uint64]:
    """The first word of each sample's key, in the numbering of a `TrainingSet`."""
    return np.concatenate([reader.keys.first_words for reader in readers])
