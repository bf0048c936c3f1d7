"""The same records in another physical layout, bit for bit; stores of an older schema become ones of the present."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.places import open_files
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.storage.schema.commit_record import Quarantined
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.write.store import StoreWriter, open_writer

Progress = Callable[[int], object]
Sample = Callable[[int], Record | Quarantined]


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What was written; a resumed run counts only its own shards."""

    shards_written: int
    num_shards: int
    num_records: int
    num_quarantined: int


def convert_store(
    source: Path | str,
    target: Path | str,
    backend: str,
    progress: Progress = lambda samples: None,
) -> CopyReport:
    """Write the store at `source` again at `target`.

    Targets are copied as stored; plan, unusable samples and attachments stay the same. Only the layout changes, and the
    schema if the source has an older one. After an interruption the same call resumes.

    Args:
        progress: called with the number of samples done since the last call.

    Raises:
        StoreError: the source is incomplete or damaged, or the target cannot be this store.
    """
    check_other_place(target, [source])
    reader = StoreReader(source)
    manifest = converted_manifest(reader.manifest, backend)
    attachments = {name: reader.attachment(name) for name in manifest.attachments}
    writer = open_writer(target, manifest, attachments)
    return copy_samples(writer, samples_of(reader), progress)


def converted_manifest(manifest: Manifest, backend: str) -> Manifest:
    """The manifest with another backend, in the present schema."""
    return manifest.changed(backend=backend)


def samples_of(reader: StoreReader) -> Sample:
    """Data-set index -> the sample's record, or the reason why it is unusable."""
    positions = positions_by_index(reader)
    quarantined = {entry.index: entry for entry in reader.quarantined}

    def sample(index: int) -> Record | Quarantined:
        position = int(positions[index])
        return quarantined[index] if position < 0 else reader[position]

    return sample


def positions_by_index(reader: StoreReader) -> NDArray[np.int64]:
    """Position in the store of each sample of the plan, -1 where it is unusable, int64 [num_samples]."""
    positions = np.full(reader.manifest.num_samples, -1, np.int64)
    positions[reader.dataset_index] = np.arange(len(reader))
    return positions


def copy_samples(writer: StoreWriter, sample: Sample, progress: Progress) -> CopyReport:
    """Write every pending shard of the plan."""
    pending = writer.pending_shards()
    records = quarantined = 0
    progress(writer.manifest.num_samples - sum(map(writer.manifest.planned_size, pending)))
    for shard in pending:
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                found = sample(index)
                if isinstance(found, Quarantined):
                    sink.quarantine(index, found.id, found.reason)
                else:
                    sink.append(found)
                progress(1)
            commit = sink.commit()
        records, quarantined = records + commit.num_records, quarantined + len(commit.quarantined)
    return CopyReport(
        shards_written=len(pending),
        num_shards=writer.manifest.num_shards,
        num_records=records,
        num_quarantined=quarantined,
    )


def check_other_place(target: Path | str, sources: list[Path | str]) -> None:
    """Refuse to write into a source.

    Raises:
        StoreError: the target is one of the sources.
    """
    for source in sources:
        if _place(source) == _place(target):
            raise StoreError(f"store {target} is both source and target; choose another path for the new store")


def _place(location: Path | str) -> str:
    files = open_files(location)
    return str(files.root.resolve()) if isinstance(files, LocalFiles) else files.location.rstrip("/")
