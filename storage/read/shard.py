"""One shard opened for reading: tables in memory, records read on request."""

from collections.abc import Collection
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.protocol import ShardSource
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.layouts.stored_target import text_of
from alignkd.storage.record.part import RecordPart
from alignkd.storage.record.record import Record
from alignkd.storage.schema.commit_record import CommitRecord
from alignkd.storage.schema.manifest import Manifest

# after so many records of an open shard, and 1/PART_BEFORE_HOLDING of all, small columns are read whole
READS_BEFORE_HOLDING = 8
PART_BEFORE_HOLDING = 32


class OpenShard:
    """Records of one shard.

    Attributes:
        source: the layout's access to the shard.
        tables: which rows belong to which record.
        num_bytes: memory that stays in use after `release`, approximately.
        held_bytes: memory of the columns that are held until `release`.
        last_read: number of the last read, in the count of the cache that keeps the shard.
    """

    def __init__(
        self,
        files: StoreFiles,
        manifest: Manifest,
        codec: RecordCodec,
        commit: CommitRecord,
    ) -> None:
        """Read the tables.

        Raises:
            CorruptStoreError: a table is damaged.
        """
        self.codec, self.commit = codec, commit
        backend = get_backend(manifest.backend)
        self.source: ShardSource = backend.open(files, commit.path, manifest, codec.columns, commit)
        self.tables = self.source.tables()
        self.num_bytes = self.source.table_bytes()
        self.held_bytes = self.last_read = self._reads = 0
        self._busy_after = max(READS_BEFORE_HOLDING, len(self.tables) // PART_BEFORE_HOLDING)

    def __len__(self) -> int:
        return len(self.tables)

    def keys(self) -> NDArray[np.uint8]:
        """The key of each record, uint8 [records, 32]."""
        return self.source.keys()

    def ids(self) -> NDArray[np.uint8]:
        """The ids of all records one after the other, uint8 [bytes]."""
        return self.source.ids()

    def texts(self) -> list[str]:
        """The JSON text of each record (`alignkd.storage.layouts.rows.sample_text`); nothing else is read.

        Raises:
            CorruptStoreError: naming shard, file and chunk or member.
        """
        data, ends = self.source.texts(), self.tables.ends("text").tolist()
        return [text_of(data[start:stop]) for start, stop in pairwise(ends)]

    def record(self, number: int) -> Record:
        """The record of that number in the shard, verified.

        Raises:
            CorruptStoreError: naming shard, file and chunk or member.
        """
        self._reads += 1
        numbers = self.tables.numbers(number)
        return self.codec.decode(self.source.rows(number, numbers), numbers)

    def conversation(self, number: int) -> list[dict[str, Any]]:
        """The turns of a record, verified; nothing else is read.

        Raises:
            CorruptStoreError: naming shard, file and chunk or member.
        """
        return self.codec.decode_conversation(self.source.rows(number, self.tables.numbers(number), whole=False))

    def part(
        self, number: int, *, logits: bool = False, attention: bool = False, more: Collection[str] = ()
    ) -> RecordPart:
        """The labels and some targets of a record; no other column or member is read.

        Args:
            logits, attention: whether the record's own `logits` and `attention` are read.
            more: names of further targets.

        Raises:
            CorruptStoreError: naming shard, file and chunk or member.
        """
        numbers = self.tables.numbers(number)
        read = self.source.rows(number, numbers, whole=False)
        return self.codec.decode_part(read, numbers, logits=logits, attention=attention, more=more)

    @property
    def is_busy(self) -> bool:
        """Whether so many records were read that holding small columns saves time."""
        return self._reads >= self._busy_after and not self.held_bytes

    def hold(self, limit: int) -> None:
        """Keep small columns in memory, at most `limit` bytes.

        Raises:
            CorruptStoreError: naming shard, file and chunk.
        """
        self.held_bytes = self.source.hold(limit)
        if not self.held_bytes:
            # nothing fits, or the layout has no such columns: try less often
            self._reads, self._busy_after = 0, 2 * self._busy_after

    def release(self) -> None:
        """Close files and drop held columns; tables stay, and the next read opens the files again."""
        self._reads = self.held_bytes = 0
        self.source.release()
