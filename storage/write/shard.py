"""Writing one shard: every planned sample appended in order or quarantined, then committed whole."""

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import RecordError, StoreError, disk_errors
from alignkd.storage.files.exclusive import make_temporary_folder, remove
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec, Rows
from alignkd.storage.record.record import Record
from alignkd.storage.schema.columns.shard import NO_ROW, OFFSETS, RECORDS
from alignkd.storage.schema.commit_record import (
    CommitRecord,
    FileEntry,
    Quarantined,
    Totals,
    shard_name,
)
from alignkd.storage.write.place import Place
from alignkd.storage.write.publish import read_back

# sha256 of each image, and its vision tokens, which may depend on the number of images in a sample
ImageSet = tuple[tuple[str, ...], tuple[int, ...]]


class ShardWriter:
    """One shard being written: append every planned sample in order or quarantine it, then commit."""

    def __init__(
        self, place: Place, codec: RecordCodec, shard: int, planned: NDArray[np.int64], *, replaces: bool = False
    ) -> None:
        """`replaces`: the shard is committed already, and this one is to take its place."""
        self.place, self.codec, self.shard, self.replaces = place, codec, shard, replaces
        self.manifest_hash = codec.manifest.shard_hash(shard)
        self._name = f"shard {shard} of store {place.path}"
        self.num_records = 0
        self.committed: CommitRecord | None = None
        self._planned = planned.tolist()
        self._next = 0
        self._quarantined: dict[int, Quarantined] = {}
        # images of a record -> their first row among the shard's images, and the record that stores them; several
        # images are stored together, once for all records that show the same images
        self._images: dict[ImageSet, tuple[int, int]] = {}
        self._num_images = 0
        labels = {column.name: column.labels for column in codec.columns}
        self._fields = labels[RECORDS]
        self._ends = dict.fromkeys(labels[OFFSETS], 0)
        self._groups = {column.name: column.group for column in codec.columns}
        with disk_errors(self._name):
            self.folder, self._lock = make_temporary_folder(place.staging, shard_name(shard))
            try:
                self._sink = get_backend(codec.manifest.backend).create(
                    self.folder, shard, codec.manifest, codec.columns
                )
            except BaseException:
                self._remove_folder()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Without a commit remove everything."""
        self._sink.abandon()
        self._remove_folder()

    def append(self, record: Record) -> None:
        """Add the next planned sample.

        Raises:
            RecordError: values that cannot be stored; the shard is unchanged, quarantine the sample or stop.
            StoreError: not the next planned sample, targets that do not fit the manifest, a full disk.
        """
        self._check_turn(record.index)
        new_image = _image_set(record) not in self._images
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
        """Record that a planned sample is unusable, before any later sample is appended.

        Raises:
            StoreError: the sample is not pending.
        """
        if index not in self._planned[self._next :] or index in self._quarantined:
            raise StoreError(
                f"sample {id!r} (index {index}) is not pending in shard {self.shard}: "
                "not planned there, or already written"
            )
        self._quarantined[index] = Quarantined(index=index, id=id, reason=reason)

    def commit(self) -> CommitRecord:
        """Complete, read back and publish the shard; returns its commit record in the store.

        If another writer has committed the shard first, this one is dropped and the other record returned.

        Raises:
            StoreError: planned samples are missing, the disk returned other bytes, or it is full.
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
            publish = self.place.replace if self.replaces else self.place.publish
            self.committed = publish(self.folder, commit)
        return self.committed

    def _remove_folder(self) -> None:
        remove(self.folder)  # already renamed if this writer published it
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
        """The record's rows of the two tables: the ends of its rows in each group, and its integer fields."""
        added = {self._groups[name]: len(values) for name, values in rows.items()}
        self._ends = {group: end + added.get(group, 0) for group, end in self._ends.items()}
        numbers = {**self.codec.numbers(record), **self._image_numbers(record)}
        return {
            OFFSETS: np.array([list(self._ends.values())], "<i8"),
            RECORDS: np.array([[numbers[field] for field in self._fields]], "<i8"),
        }

    def _image_numbers(self, record: Record) -> dict[str, int]:
        """Row of the record's image among the shard's images, and number of the record that stores it."""
        images = _image_set(record)
        if not record.has_image:
            return {"image_row": NO_ROW, "image_record": NO_ROW}
        if images not in self._images:
            self._images[images] = self._num_images, self.num_records
            self._num_images += record.num_images
        row, source = self._images[images]
        return {"image_row": row, "image_record": source}

    def _commit_record(self) -> CommitRecord:
        written = self._sink.close()
        return CommitRecord(
            shard=self.shard,
            manifest_hash=self.manifest_hash,
            num_records=self.num_records,
            folder=shard_name(self.shard),
            quarantined=tuple(self._quarantined[index] for index in sorted(self._quarantined)),
            arrays=written.arrays,
            files=tuple(FileEntry(path=file.path, bytes=file.num_bytes, sha256=file.sha256) for file in written.files),
            totals=Totals(
                tokens=self._ends["token"],
                queries=self._ends["query"],
                supervised=self._ends["supervised"],
                images=self._num_images,
                bytes=sum(file.num_bytes for file in written.files),
            ),
        )


def _image_set(record: Record) -> ImageSet:
    return record.image_sha256, record.tokens_of_image
