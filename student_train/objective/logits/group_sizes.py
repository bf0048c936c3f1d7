"""How many positions each group of the logit loss has in a GLOBAL batch, from the stores' indices alone.

The high group of a sample is a share of its positions, so its size follows from their number; the visual advantage
decides only which positions they are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.losses.logits.advantage_groups import num_high


class GroupSizes:
    """Counts the positions of both groups over any samples.

    Args:
        readers: the stores of the run.
        share: share of a sample's positions in the high group; samples without images have none there.
    """

    def __init__(self, readers: Sequence[StoreReader], share: float) -> None:
        # losses on logits leave rejected answers out
        self._all = np.concatenate(
            [np.where(Pairs.of(reader).rejected, 0, reader.num_supervised) for reader in readers]
        )
        has_image = np.concatenate([reader.has_image for reader in readers])
        numbers, places = np.unique(self._all, return_inverse=True)
        of_number = np.array([num_high(share, int(number)) for number in numbers], np.int64)
        self._high = np.where(has_image, of_number[places], 0)

    def __call__(self, positions: NDArray[np.int64]) -> tuple[int, int]:
        """Positions of the high and of the low group over the samples at these positions."""
        high = int(self._high[positions].sum())
        return high, int(self._all[positions].sum()) - high
