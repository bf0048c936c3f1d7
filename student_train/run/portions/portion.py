"""The samples of one source in one store, and how often they are seen."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import OrderPart


@dataclass(frozen=True, kw_only=True, eq=False)
class Portion:
    """The samples of one source in one store.

    Attributes:
        name: name in messages and figures, see `shown_names`.
        store: name of the store.
        source: name of the source in that store.
        part: positions in the `TrainingSet`, and how often each is seen per pass.
        measured: positions of samples that measure the weight of a domain and are not trained on, int64; empty where
            weights stay.
    """

    name: str
    store: str
    source: str
    part: OrderPart
    measured: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
