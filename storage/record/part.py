"""Some targets of a record, for tools that scan a store and need few of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.record.record import IGNORE_LABEL, Logits, Target


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordPart:
    """The labels of a record and the targets that were asked for.

    Attributes:
        labels: ids of the N supervised tokens, int64 [N].
        logits: `Record.logits`; None if they were not asked for, or the store keeps none.
        attention: `Record.attention`; None if it was not asked for, or the record has none.
        more: the chosen ones of `Record.more`; a target that the record lacks is absent.
    """

    labels: NDArray[np.int64]
    logits: Logits | None = None
    attention: Target | None = None
    more: Mapping[str, Target | Logits] = field(default_factory=dict)


def supervised_labels(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """The labels at the supervised positions, int64 [N], from those of all ids [T]."""
    following = labels[1:]
    supervised: NDArray[np.int64] = following[following != IGNORE_LABEL].astype(np.int64)
    return supervised
