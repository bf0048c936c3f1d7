"""Writing one shard: every planned sample appended in order or quarantined, then committed whole."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from storage.backend import get_backend
from storage.columns import GROUPS, OFFSETS, RECORDS
from storage.commit import publish, read_back
from storage.commits import ArrayEntry, CommitRecord, FileEntry, Quarantined, Totals, load_commit, shard_name
from storage.errors import RecordError, StoreError, disk_errors
from storage.files import make_temporary_folder, remove
from storage.record import Record
from storage.record_codec import NO_ROW, RecordCodec, Rows


class ShardWriter:
    """One shard being written: append every planned sample in order or quarantine it, then commit."""

    def __init__(self, store: Path, codec: RecordCodec, shard: int, planned: NDArray[np.int64]) -> None:
        self.store, self.codec, self.shard = store, codec, shard
        self.manifest_hash = codec.manifest.manifest_hash()
        self._name = f"shard {shard} of store {store}"
        self.num_records = 0
        self.committed: CommitRecord | None = None
        self._planned = planned.tolist()
        self._next = 0
        self._quarantined: dict[int, Quarantined] = {}
        # image_sha256 -> row of its embeddings; the first sample with an image stores them for all
        self._images: dict[str, int] = {}
        self._ends = dict.fromkeys(GROUPS, 0)
        self._groups = {column.name: column.group for column in codec.columns}
        with disk_errors(self._name):
            self.folder, self._lock = make_temporary_folder(store, shard_name(shard))
            try:
                self._sink = get_backend(codec.manifest.backend).create(self.folder, codec.columns)
                self._sink.append({OFFSETS: np.zeros((1, len(GROUPS)), "<i8")})
            except BaseException:
                self._remove_folder()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Without a commit nothing of the shard remains."""
        self._sink.abandon()
        self._remove_folder()

    def append(self, record: Record) -> None:
        """Add the next planned sample.

        Raises:
            RecordError: values that cannot be stored; the shard is as before, quarantine the sample or stop.
            StoreError: not the next planned sample, targets that do not fit the manifest, a full disk.
        """
        self._check_turn(record.index)
        new_image = record.image_sha256 not in self._images
        try:
            rows = self.codec.encode(record, with_image=new_image)
        except RecordError:
            raise
        except StoreError as error:
            raise StoreError(f"sample {record.id!r} (index {record.index}): {error}") from None
        with disk_errors(self._name):
            self._sink.append(rows | self._tables(record, rows))
        self._next += 1
        self.num_records += 1

    def quarantine(self, index: int, id: str, reason: str) -> None:
        """Note that a planned sample cannot be cached, before any later sample is appended.

        Raises:
            StoreError: the sample is not among those still to come.
        """
        if index not in self._planned[self._next :] or index in self._quarantined:
            raise StoreError(f"sample {id!r} (index {index}) is not to come in shard {self.shard}")
        self._quarantined[index] = Quarantined(index=index, id=id, reason=reason)

    def commit(self) -> CommitRecord:
        """Complete, read back, and publish the shard; returns the record that stands in the store.

        If another writer was faster its shard is as good as this one, and its record is returned.

        Raises:
            StoreError: planned samples are missing, the disk gave back other bytes, or it is full.
        """
        if self.committed is not None:
            return self.committed
        self._skip_quarantined()
        if self._next < len(self._planned):
            left = [index for index in self._planned[self._next :] if index not in self._quarantined]
            raise StoreError(
                f"shard {self.shard}: {len(left)} of {len(self._planned)} planned samples are neither appended "
                f"nor quarantined, the first has index {left[0]}"
            )
        with disk_errors(self._name):
            commit = self._commit_record()
            read_back(self.folder, commit, self.codec.manifest)
            ours = publish(self.store, self.folder, commit)
        self.committed = commit if ours else load_commit(self.store, self.shard, self.manifest_hash)
        return self.committed

    def _remove_folder(self) -> None:
        remove(self.folder)  # gone already if this writer published it
        self._lock.release()

    def _check_turn(self, index: int) -> None:
        self._skip_quarantined()
        expected = self._planned[self._next] if self._next < len(self._planned) else "none"
        if index != expected:
            raise StoreError(
                f"shard {self.shard}: sample with index {index} appended, the plan's next is {expected}; "
                "append in the order of planned_samples()"
            )

    def _skip_quarantined(self) -> None:
        while self._next < len(self._planned) and self._planned[self._next] in self._quarantined:
            self._next += 1

    def _tables(self, record: Record, rows: Rows) -> Rows:
        """The record's rows of the two tables: where its rows end in each group, and its numbers."""
        added = {self._groups[name]: len(values) for name, values in rows.items()}
        self._ends = {group: end + added.get(group, 0) for group, end in self._ends.items()}
        image_row = NO_ROW
        if record.image_sha256 is not None:
            image_row = self._images.setdefault(record.image_sha256, len(self._images))
        width = NO_ROW if record.attention is None else record.attention.shape[2]
        return {
            OFFSETS: np.array([list(self._ends.values())], "<i8"),
            RECORDS: np.array([[record.index, image_row, width]], "<i8"),
        }

    def _commit_record(self) -> CommitRecord:
        written = self._sink.close()
        return CommitRecord(
            shard=self.shard,
            manifest_hash=self.manifest_hash,
            num_records=self.num_records,
            quarantined=tuple(self._quarantined[index] for index in sorted(self._quarantined)),
            arrays={name: ArrayEntry(shape=a.shape, chunk=a.chunk) for name, a in written.arrays.items()},
            files=tuple(FileEntry(path=file.path, bytes=file.num_bytes, sha256=file.sha256) for file in written.files),
            totals=Totals(
                tokens=self._ends["token"],
                queries=self._ends["query"],
                supervised=self._ends["supervised"],
                images=len(self._images),
                bytes=sum(file.num_bytes for file in written.files),
            ),
        )
