"""How many elements each loss term has in a GLOBAL batch, from the store's index alone: ranks need not communicate."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.objective.attention.match import AttentionMatch, first_layers
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.families.family import ModelConfig


class GlobalCounts:
    """Counts elements of any set of samples.

    Args:
        readers: the stores of the run.
        student: the student's shapes.
        terms: the loss terms that are computed.
        attention: how attention is compared; None: as by default.
    """

    def __init__(
        self,
        readers: Sequence[StoreReader],
        student: ModelConfig,
        terms: Iterable[str],
        attention: AttentionMatch | None = None,
    ) -> None:
        match = attention or first_layers(student)
        self._per_sample = {
            name: np.concatenate([_elements(name, reader, student, match) for reader in readers]) for name in terms
        }

    def __call__(self, positions: NDArray[np.int64]) -> dict[str, int]:
        """Elements by term over the samples at these positions."""
        return {term: int(counts[positions].sum()) for term, counts in self._per_sample.items()}


def _elements(name: str, reader: StoreReader, student: ModelConfig, match: AttentionMatch) -> NDArray[np.int64]:
    elements = TERMS[name].elements
    if elements is not None:
        return elements(reader, student, match)
    return np.where(Pairs.of(reader).rejected, 0, reader.num_supervised)
