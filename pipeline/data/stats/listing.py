"""Dropped samples and their reasons. Reasons are computed again on request, so memory holds no text per sample."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from alignkd.disk.whole_file import written_whole
from alignkd.pipeline.data.stats.figures import Dropped
from alignkd.pipeline.data.stats.scan import Scan, judge_image, judge_text, source_of
from alignkd.pipeline.data.stats.table import BROKEN, KEPT, KINDS, MISSING, OUTSIDE, OVERLONG, SampleTable
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.inputs.examples import is_overlong, overlong_error

CHANGED = "usable now, but it was unusable when it was counted"


def dropped_samples(scan: Scan, table: SampleTable, limits: Sequence[int], numbers: Iterable[int]) -> Iterator[Dropped]:
    """The problem of each given sample; all of them are dropped with some limit or with all."""
    kinds = table.kinds(None)
    for number in map(int, numbers):
        source, sample = scan.find(number)
        tokens = int(table.tokens[number])
        exceeded = [limit for limit in limits if is_overlong(tokens, limit)]
        kind = OVERLONG if kinds[number] == KEPT else int(kinds[number])
        yield Dropped(
            file=str(source.path),
            index=sample.index,
            id=sample.id,
            source=source_of(sample),
            kind=KINDS[kind],
            tokens=tokens if table.counted[number] else None,
            overlong_for=exceeded,
            reason=str(overlong_error(tokens, min(exceeded))) if kind == OVERLONG else _reason(scan, sample, kind),
        )


def _reason(scan: Scan, sample: Sample, kind: int) -> str:
    if kind in {MISSING, OUTSIDE, BROKEN}:
        return judge_image(scan, sample)[1] or judge_text(scan, sample)[2] or CHANGED
    return judge_text(scan, sample)[2] or CHANGED


def write_listing(path: Path, scan: Scan, table: SampleTable, limits: Sequence[int]) -> int:
    """Write every sample that some limit drops as one line of JSON, in order, and return their number.

    The file appears complete or not at all.
    """
    strictest = table.kinds(min(limits, default=None))
    numbers = np.flatnonzero(strictest != KEPT)
    with written_whole(path) as aside, aside.open("w", encoding="utf-8") as stream:
        dropped = dropped_samples(scan, table, limits, numbers)
        for entry in tqdm(dropped, total=len(numbers), desc="list", unit="sample", disable=None):
            stream.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
    return len(numbers)
