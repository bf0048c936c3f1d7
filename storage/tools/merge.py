"""Several stores of one teacher over disjoint data as one store."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.storage.schema.commit_record import Quarantined
from alignkd.storage.schema.manifest import Manifest, StoredSource
from alignkd.storage.schema.read_from import joined_read_from
from alignkd.storage.schema.sealed_json import canonical
from alignkd.storage.tools.compare.matching import key_numbers
from alignkd.storage.tools.convert import CopyReport, Progress, check_other_place, copy_samples, samples_of
from alignkd.storage.write.store import open_writer

MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A record whose key an earlier store has too; indices are those of the merged store."""

    key: str
    index: int
    first_index: int


@dataclass(frozen=True, kw_only=True)
class MergeReport(CopyReport):
    """With the records that two stores have."""

    duplicates: list[Duplicate]


def merge_stores(
    sources: Sequence[Path | str],
    target: Path | str,
    *,
    backend: str | None = None,
    keep_first: bool = False,
    progress: Progress = lambda samples: None,
) -> MergeReport:
    """Write all records of the sources into one store.

    The data set of the merged store is the concatenation of the sources': a sample's index grows by the number of
    samples in the sources before its own. The plan uses the first source's seed and shard size. `data_fingerprint` has
    for each source its range of indices and the hash of its own data fingerprint. Unusable samples stay unusable.
    Targets are copied as stored. After an interruption the same call resumes.

    Args:
        backend: layout of the new store; default: the first source's.
        keep_first: if two stores have a record of the same key, keep the first store's; the other is listed as
            unusable, with the index of the one that is kept.
        progress: called with the number of samples done since the last call.

    Raises:
        StoreError: different teachers, codecs or attachments (with both values), a key in two sources without
            `keep_first`, a source that is incomplete or damaged, or a target that cannot be this store.
    """
    if len(sources) < 2:
        raise StoreError(f"{len(sources)} store given to merge, expected two or more")
    check_other_place(target, list(sources))
    readers = [StoreReader(source) for source in sources]
    for reader in readers[1:]:
        _check_mergeable(readers[0], reader)
    starts = np.cumsum([0] + [reader.manifest.num_samples for reader in readers]).tolist()
    duplicates = find_duplicates(readers, starts)
    if duplicates and not keep_first:
        raise StoreError(_refusal(duplicates, readers, starts))
    first = readers[0]
    attachments = {name: first.attachment(name) for name in first.manifest.attachments}
    writer = open_writer(target, merged_manifest(readers, backend), attachments)
    report = copy_samples(writer, _Samples(readers, starts, duplicates), progress)
    return MergeReport(**asdict(report), duplicates=duplicates)


def merged_manifest(readers: Sequence[StoreReader], backend: str | None) -> Manifest:
    """The manifest of the merged store: a pure function of the sources' manifests and their order."""
    manifests, start = [reader.manifest for reader in readers], 0
    starts: list[int] = []
    data = {"merged_sources": str(len(manifests))}
    for number, manifest in enumerate(manifests):
        listed = manifest.settings()
        described = {name: listed[name] for name in ("sources", "additions") if name in listed}
        digest = hashlib.sha256(canonical(manifest.data_fingerprint | described)).hexdigest()
        data[f"source_{number:03d}"] = f"{start}..{start + manifest.num_samples - 1} {digest}"
        starts.append(start)
        start += manifest.num_samples
    changes = {
        "data_fingerprint": data,
        "num_samples": start,
        "backend": backend or manifests[0].backend,
        "sources": _sources(readers),
        "contiguous": None,
        "additions": None,
        "read_from": joined_read_from(zip(starts, (one.read_from for one in manifests), strict=True)),
    }
    return manifests[0].changed(**changes)


def _sources(readers: Sequence[StoreReader]) -> list[StoredSource] | None:
    """The data sets of all stores, each under a name of its own; None if no store lists any."""
    if not any(reader.manifest.all_sources() for reader in readers):
        return None
    found: list[StoredSource] = []
    for reader in readers:
        whole = StoredSource(name=reader.sources[0], num_samples=reader.manifest.num_samples)
        for source in reader.manifest.all_sources() or [whole]:
            taken = sum(source.name in (other.name, other.name.rpartition("~")[0]) for other in found)
            # without its files: a merged store does not grow, and its indices are not those of one list of data
            name = f"{source.name}~{taken + 1}" if taken else source.name
            found.append(StoredSource(name=name, num_samples=source.num_samples, pairs=source.pairs))
    return found


def find_duplicates(readers: Sequence[StoreReader], starts: Sequence[int]) -> list[Duplicate]:
    """Records whose key an EARLIER source has; repetitions within one source come from its data and stay."""
    numbers = key_numbers(list(readers))
    seen: NDArray[np.int64] = np.empty(0, np.int64)  # numbers of keys, ascending; `first` has the first index of each
    first: NDArray[np.int64] = np.empty(0, np.int64)
    duplicates = []
    for reader, start, keys in zip(readers, starts, numbers, strict=False):
        place = np.minimum(np.searchsorted(seen, keys), max(len(seen) - 1, 0))
        again = seen[place] == keys if len(seen) else np.zeros(len(keys), np.bool_)
        index = reader.dataset_index + start
        duplicates += [
            Duplicate(key=reader.keys[at], index=int(index[at]), first_index=int(first[place[at]]))
            for at in np.flatnonzero(again).tolist()
        ]
        seen, order = np.unique(np.concatenate([seen, keys]), return_index=True)
        first = np.concatenate([first, index])[order]
    return sorted(duplicates, key=lambda duplicate: duplicate.index)


class _Samples:
    """Index in the merged store -> record or reason; see `copy_samples`."""

    def __init__(self, readers: Sequence[StoreReader], starts: Sequence[int], duplicates: list[Duplicate]) -> None:
        self.readers, self.starts = readers, starts
        self._sources = [samples_of(reader) for reader in readers]
        self._duplicates = {duplicate.index: duplicate for duplicate in duplicates}

    def __call__(self, index: int) -> Record | Quarantined:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        found = self._sources[number](index - self.starts[number])
        if isinstance(found, Quarantined):
            return Quarantined(index=index, id=found.id, reason=found.reason)
        if (again := self._duplicates.get(index)) is not None:
            return Quarantined(index=index, id=found.id, reason=f"merged: same key as sample {again.first_index}")
        return Record.trusted({**found.__dict__, "index": index})


def _check_mergeable(first: StoreReader, other: StoreReader) -> None:
    """Raises:
    StoreError: one line with every difference that prevents a merge, and both values.
    """
    ours, theirs = _decisive(first.manifest), _decisive(other.manifest)
    differing = [
        f"{name} is {ours.get(name, 'absent')} in {first.path}, {theirs.get(name, 'absent')} in {other.path}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise StoreError(
            f"stores cannot be merged: {'; '.join(differing)}; merge stores of one teacher with the same settings of "
            "`store`, written by the same version, or train from both as they are (`store: [FIRST, SECOND]`)"
        )


def _decisive(manifest: Manifest) -> dict[str, Any]:
    codecs = manifest.codecs.model_dump(exclude={"logits"})
    logits = manifest.codecs.logits.model_dump(exclude_none=True)
    flat: dict[str, Any] = {"inputs": manifest.inputs}
    for name, values in {
        "fingerprint": manifest.fingerprint,
        "shapes": manifest.shapes.model_dump(),
        "codecs": codecs,
        "codecs.logits": logits,
        "targets": {target.name: target.model_dump() for target in manifest.more},
        "attachments": manifest.attachments,
    }.items():
        flat |= {f"{name}.{key}": value for key, value in values.items()}
    return flat


def _refusal(duplicates: list[Duplicate], readers: Sequence[StoreReader], starts: Sequence[int]) -> str:
    named = []
    for duplicate in duplicates[:MAX_NAMED]:
        places = []
        for index in (duplicate.first_index, duplicate.index):
            number = int(np.searchsorted(starts, index, side="right")) - 1
            places.append(f"index {index - starts[number]} of {readers[number].path}")
        named.append(f"{places[1]} is {places[0]}")
    more = f" and {len(duplicates) - MAX_NAMED} more" if len(duplicates) > MAX_NAMED else ""
    return (
        f"{len(duplicates)} records are in two stores: {'; '.join(named)}{more}; keep the first of each (--keep-first)"
    )
