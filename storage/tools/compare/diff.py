"""Compares two stores record by record, for any layouts and codecs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.logprobs import open_lm_head
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.manifest_checks import flatten
from alignkd.storage.tools.compare.matching import match_records
from alignkd.storage.tools.compare.record_diff import FieldResult, LmHeads, compare_records


@dataclass(frozen=True, kw_only=True)
class RecordName:
    """Names of a record for users and scripts."""

    key: str
    id: str
    index: int


@dataclass(frozen=True, kw_only=True)
class FieldDifference:
    """One field over all records that both stores have.

    Attributes:
        records: number of records in which the field differs.
        beyond: number of records in which it differs by more than the tolerance.
        max_abs: largest absolute difference of floats, None for other values.
        relative_l2: norm of all differences over the norm of A's values, None for other values.
        worst: the record with the largest difference, or the first one.
        note: description of the difference, where numbers do not show it.
    """

    field: str
    records: int
    beyond: int
    max_abs: float | None
    relative_l2: float | None
    worst: RecordName
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ManifestDifference:
    """A manifest's field with both values."""

    field: str
    a: Any
    b: Any


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """What differs between stores A and B.

    Attributes:
        matched: number of records that both have.
        only_a, only_b: records that the other store does not have.
        quarantined_only_a, quarantined_only_b: (index, id) of unusable samples that only one store lists.
        fields: fields that differ in at least one record.
        manifest: differing fields of the manifests; stores may be equal in spite of them.
    """

    matched: int
    only_a: list[RecordName]
    only_b: list[RecordName]
    quarantined_only_a: list[tuple[int, str]]
    quarantined_only_b: list[tuple[int, str]]
    fields: list[FieldDifference] = field(default_factory=list)
    manifest: list[ManifestDifference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """The same samples, and no difference beyond the tolerance."""
        missing = self.only_a or self.only_b or self.quarantined_only_a or self.quarantined_only_b
        return not missing and not any(found.beyond for found in self.fields)


def diff_stores(
    a: StoreReader,
    b: StoreReader,
    *,
    tolerance: float | None = None,
    ignore: Collection[str] = (),
    progress: Callable[[int], object] = lambda records: None,
) -> DiffReport:
    """Compare all records of two stores, matched by key (and by index where records share one).

    Args:
        tolerance: largest difference of floats that counts as equal. Default: 0 if both stores keep a target by the
            same codec, else the sum of the two codecs' error bounds, value by value.
        ignore: fields that are not compared; `logits` includes its parts.
        progress: called with the number of records done since the last call.

    Raises:
        CorruptStoreError: a record cannot be read.
    """
    matches = match_records(a, b)
    fields = compare_fields(a, b, matches.pairs, tolerance=tolerance, ignore=ignore, progress=progress)
    listed_a, listed_b = _quarantined(a), _quarantined(b)
    return DiffReport(
        matched=len(matches.pairs),
        only_a=[_name(a, place) for place in matches.only_a.tolist()],
        only_b=[_name(b, place) for place in matches.only_b.tolist()],
        quarantined_only_a=sorted(listed_a - listed_b),
        quarantined_only_b=sorted(listed_b - listed_a),
        fields=[found for found in fields if found.records],
        manifest=diff_manifests(a.manifest, b.manifest),
    )


def compare_fields(
    a: StoreReader,
    b: StoreReader,
    pairs: NDArray[np.int64],
    *,
    tolerance: float | None = None,
    ignore: Collection[str] = (),
    progress: Callable[[int], object] = lambda records: None,
) -> list[FieldDifference]:
    """Every field over pairs of positions, int64 [n, 2], including those that never differ; see `diff_stores`."""
    heads = LmHeads(a=open_lm_head(a.files, a.manifest), b=open_lm_head(b.files, b.manifest))
    sums: dict[str, _FieldSum] = {}
    for ours, theirs in pairs.tolist():
        record, other = a[ours], b[theirs]
        name = RecordName(key=record.key, id=record.id, index=record.index)
        for found in compare_records(record, other, heads, a.manifest.shapes.vocab_size):
            if found.field.partition(".")[0] not in ignore and found.field not in ignore:
                sums.setdefault(found.field, _FieldSum(found.field, name)).add(found, name, tolerance)
        progress(1)
    return [found.result() for found in sums.values()]


def diff_manifests(a: Manifest, b: Manifest) -> list[ManifestDifference]:
    """Fields that differ, nested ones as `codecs.attention`; None where a manifest does not have the field."""
    # all samples, as the field is understood; a grown manifest has there those of its first dump
    first, second = (flatten(one.settings() | {"num_samples": one.num_samples}) for one in (a, b))
    return [
        ManifestDifference(field=name, a=first.get(name), b=second.get(name))
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


class _FieldSum:
    def __init__(self, name: str, record: RecordName) -> None:
        self.name, self.worst, self.note = name, record, ""
        self.records = self.beyond = 0
        self.max_abs: float | None = None
        self.squared_error = self.squared_norm = 0.0

    def add(self, found: FieldResult, record: RecordName, tolerance: float | None) -> None:
        self.squared_error += found.squared_error
        self.squared_norm += found.squared_norm
        if found.max_abs is not None:
            self.max_abs = max(found.max_abs, self.max_abs or 0.0)
        if not found.differs:
            return
        if not self.records or found.max_abs == self.max_abs:
            self.worst, self.note = record, found.note
        self.records += 1
        self.beyond += found.beyond if tolerance is None or found.max_abs is None else found.max_abs > tolerance

    def result(self) -> FieldDifference:
        relative = np.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else None
        return FieldDifference(
            field=self.name,
            records=self.records,
            beyond=self.beyond,
            max_abs=self.max_abs,
            relative_l2=None if relative is None or self.max_abs is None else float(relative),
            worst=self.worst,
            note=self.note,
        )


def _name(reader: StoreReader, place: int) -> RecordName:
    return RecordName(key=reader.keys[place], id=reader.ids[place], index=int(reader.dataset_index[place]))


def _quarantined(reader: StoreReader) -> set[tuple[int, str]]:
    return {(entry.index, entry.id) for entry in reader.quarantined}
