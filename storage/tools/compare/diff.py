"""Two stores, record by record, whatever their layouts and codecs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.logprobs import open_lm_head
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.manifest import Manifest, flatten
from alignkd.storage.tools.compare.matching import match_records
from alignkd.storage.tools.compare.record_diff import FieldResult, LmHeads, compare_records


@dataclass(frozen=True, kw_only=True)
class RecordName:
    """A record as people and scripts find it again."""

    key: str
    id: str
    index: int


@dataclass(frozen=True, kw_only=True)
class FieldDifference:
    """One field over all records that both stores have.

    Attributes:
        records: in which it differs.
        beyond: records in which it differs by more than is tolerated.
        max_abs: largest difference of a number, None where these are no floats.
        relative_l2: norm of all differences over the norm of A's values, None likewise.
        worst: the record with the largest difference, or the first one.
        note: in what it differs, where numbers do not say.
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
        matched: records that both have.
        only_a, only_b: records that the other has not.
        quarantined_only_a, quarantined_only_b: (index, id) of samples that only one lists.
        fields: those that differ in some record.
        manifest: differing fields of the manifests; they do not make stores unequal.
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
        """The same samples, and nothing beyond what is tolerated."""
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
        tolerance: largest difference of a float that counts as equal; if not given, none where both stores keep a
            target by the same codec, else the sum of the two codecs' stated bounds, value by value.
        ignore: fields that are not compared; `logits` also means its parts.
        progress: called with the number of records that are done since the last call.

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
    """Every field over pairs of positions, int64 [n, 2], also those that never differ; see `diff_stores`."""
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
    """Fields that differ, nested ones as `codecs.attention`; None where one has none."""
    first, second = flatten(a.model_dump(mode="json")), flatten(b.model_dump(mode="json"))
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
