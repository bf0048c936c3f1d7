"""Sums up the table of samples to figures per source data set."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.data.stats.figures import ImagesChecked, LimitStats, SourceStats
from alignkd.pipeline.data.stats.table import (
    BROKEN,
    CONVERSATION,
    KEPT,
    KINDS,
    LABEL_MASK,
    MALFORMED,
    MISSING,
    OUTSIDE,
    OVERLONG,
    UNANSWERED,
    SampleTable,
)

TOTAL = "total"
# limit, or None for a dump without a limit -> what that dump does with each sample
Kinds = Mapping[int | None, NDArray[np.uint8]]


def summarise(
    table: SampleTable, ends: Sequence[int], limits: Sequence[int], images_checked: ImagesChecked
) -> tuple[SourceStats, tuple[SourceStats, ...], tuple[SourceStats, ...]]:
    """The figures of all samples, those of each source (the largest first), and those of each data set in order.

    Args:
        ends: for each data set, one more than the number of its last sample.
    """
    kinds: Kinds = {limit: table.kinds(limit) for limit in (None, *limits)}
    order = np.argsort(table.source_of, kind="stable")
    source_ends = np.cumsum(np.bincount(table.source_of, minlength=len(table.sources)))
    groups = zip(table.sources, np.split(order, source_ends[:-1]), strict=True) if len(table.sources) else ()
    sources = [_figures(name, rows, table, kinds, images_checked) for name, rows in groups]
    total = _figures(TOTAL, order, table, kinds, images_checked)
    by_size = tuple(sorted(sources, key=lambda source: (-source.samples, source.source)))
    data_sets = tuple(
        _figures(str(end), np.arange(start, end), table, kinds, images_checked)
        for start, end in zip((0, *ends), ends, strict=False)
    )
    return total, by_size, data_sets


def _figures(
    source: str, rows: NDArray[np.int64], table: SampleTable, kinds: Kinds, images_checked: ImagesChecked
) -> SourceStats:
    of_kind = np.bincount(kinds[None][rows], minlength=len(KINDS)).tolist()
    tokens = table.tokens[rows][table.counted[rows]]
    malformed = of_kind[MALFORMED]
    return SourceStats(
        source=source,
        samples=len(rows),
        text_only=len(rows) - int(np.count_nonzero(table.images_of[rows])) - malformed,
        several_images=int(np.count_nonzero(table.images_of[rows] > 1)),
        image_missing=None if images_checked == "no" else of_kind[MISSING],
        image_broken=of_kind[BROKEN] if images_checked == "decoded" else None,
        label_mask=of_kind[LABEL_MASK],
        unanswered=of_kind[UNANSWERED],
        other=malformed + of_kind[CONVERSATION] + of_kind[OUTSIDE],
        usable=of_kind[KEPT],
        counted=len(tokens),
        mean_tokens=float(tokens.mean()) if len(tokens) else None,
        median_tokens=float(np.median(tokens)) if len(tokens) else None,
        max_tokens=int(tokens.max()) if len(tokens) else None,
        limits=tuple(_limit(limit, kinds[limit][rows]) for limit in kinds if limit is not None),
    )


def _limit(max_tokens: int, kinds: NDArray[np.uint8]) -> LimitStats:
    of_kind = np.bincount(kinds, minlength=len(KINDS)).tolist()
    return LimitStats(
        max_tokens=max_tokens, kept=of_kind[KEPT], overlong=of_kind[OVERLONG], image_broken=of_kind[BROKEN]
    )
