"""Counts of samples by kind. No kind is left out of training: each sample contributes to the terms that it has."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.data.samples.lengths import sequence_lengths


class SampleKinds:
    """Counts samples by kind, from the stores' indices alone.

    Every sample is `one_image`, `several_images` or `text_only`, which has only the supervised and logit terms. Samples
    without a supervised token are also `unsupervised`; they have at most the attention and vision terms.
    """

    def __init__(self, readers: Sequence[StoreReader], vision_tokens: int | None) -> None:
        """Count over the samples of some stores, in the numbering of `TrainingSet`.

        Args:
            vision_tokens: tokens per image for the student; None if they depend on the image.
        """
        num_images = np.concatenate([reader.num_images for reader in readers])
        self._is_kind = {
            "one_image": num_images == 1,
            "several_images": num_images > 1,
            "text_only": num_images == 0,
            "unsupervised": np.concatenate([reader.num_supervised for reader in readers]) == 0,
        }
        self._tokens = np.concatenate([sequence_lengths(reader, vision_tokens) for reader in readers])

    def __call__(self, positions: NDArray[np.int64]) -> dict[str, int]:
        """Samples by kind among these positions."""
        return {kind: int(np.count_nonzero(is_kind[positions])) for kind, is_kind in self._is_kind.items()}

    def tokens(self, positions: NDArray[np.int64]) -> int:
        """Tokens of the spliced sequences of these records, without padding."""
        return int(self._tokens[positions].sum())

    def up_to(self, step: int, order: SampleOrder) -> dict[str, int]:
        """Samples by kind over the first `step` optimiser steps."""
        totals = dict.fromkeys(self._is_kind, 0)
        for number in range(step):
            for kind, count in self(order.global_batch_indices(number)).items():
                totals[kind] += count
        return totals
