"""Reading a store: records by position, and their lengths and ids without reading the targets."""

import operator
import resource
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate, chain, islice
from pathlib import Path, PurePath
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.places import open_files
from alignkd.storage.read.lengths import LENGTHS, lengths_of
from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.read.logprobs import open_lm_head
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.shard_cache import ShardCache
from alignkd.storage.read.teacher_logprobs import Logprobs, teacher_logprobs
from alignkd.storage.read.text_tables import IdTable, KeyTable
from alignkd.storage.record.record import Record
from alignkd.storage.schema.attachments import verified_attachment
from alignkd.storage.schema.commit_record import (
    CommitHead,
    CommitRecord,
    Quarantined,
    load_commit,
    load_commits,
    manifest_and_shards,
)
from alignkd.storage.schema.manifest import FILE_NAME, Manifest
from alignkd.storage.schema.shard_files import missing_or_resized

# an open shard needs descriptors (zarr: one per column): at most these, and half of what the process is allowed
MAX_OPEN_FILES = 4096
MAX_OPEN_SHARDS = 256
# shards whose file sizes are requested at the same time: a network file system answers each request late
STAT_THREADS = 8
STAT_BATCH = 256


class StoreReader(Sequence[Record]):
    """The committed records of a store, shard after shard in their written order.

    `reader[i]` verifies the checksum of every byte it reads. Float targets are returned as stored: a float16 target as
    float16, a quantised one as an `EncodedArray`, so that few bytes are copied and the training device decodes them.
    Readers can be forked, pickled and shared by threads. A slice is a list of records, read at once.

    Attributes:
        path: the store's folder, or its URL.
        files: the store's files.
        manifest: settings of the store.
        commits: the commit record of each shard, by shard number; loaded on request.
        quarantined: unusable samples, with reasons.
    """

    def __init__(
        self,
        path: Path | str | StoreFiles,
        *,
        allow_incomplete: bool = False,
    ) -> None:
        """Open a store and check that all committed files exist in their committed size.

        Args:
            path: the store's folder or URL.
            allow_incomplete: read what is committed now; shards committed later are not seen.

        Raises:
            StoreError: not a store, or shards of the plan are missing and `allow_incomplete` is not set.
            CorruptStoreError: a file is missing or has another size.
        """
        self.files = open_files(path)
        self.path = self.files.root if isinstance(self.files, LocalFiles) else self.files.location
        self.manifest: Manifest
        self.manifest, found = manifest_and_shards(self.files)
        get_backend(self.manifest.backend, self.files.label(FILE_NAME))
        if not allow_incomplete and len(found) < self.manifest.num_shards:
            raise StoreError(
                f"store {self.files.location}: {len(found)} of {self.manifest.num_shards} shards committed; "
                "run `alignkd dump` again"
            )
        self.commits = CommitLog(self.files, found, self.manifest)
        heads, self._identities = self._checked_heads()
        self.quarantined: list[Quarantined] = list(chain.from_iterable(head.quarantined for head in heads))
        self._codec = RecordCodec(self.manifest)
        self._starts = [0, *accumulate(head.num_records for head in heads)]
        # places of the shards whose descriptions this process has verified
        self._described: set[int] = set()
        self._shards = self._shard_cache()

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_shards", "_lm_head")  # open files
        return {name: value for name, value in self.__dict__.items() if name not in left_out} | {"_described": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = self._shard_cache()

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        manifest = self.manifest
        shards = f"{len(self.commits)} of {manifest.num_shards} shards"
        return f"StoreReader({str(self.path)!r}, {len(self)} records, {shards}, {manifest.backend})"

    @overload
    def __getitem__(self, position: int) -> Record: ...
    @overload
    def __getitem__(self, position: slice) -> list[Record]: ...
    def __getitem__(self, position: int | slice) -> Record | list[Record]:
        """The record at a position; negative positions count from the end. A slice gives a list.

        Raises:
            IndexError: the position does not exist.
            CorruptStoreError: naming shard, file and chunk or member.
        """
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        number = operator.index(position)  # numpy integers are slow to compare
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(f"position {position} of a store with {len(self)} records")
        return self._at(number)

    def _at(self, position: int) -> Record:
        place = bisect_right(self._starts, position) - 1
        try:
            return self._record(place, position - self._starts[place])
        except CorruptStoreError:
            # the damage may be in the local cache of a remote store
            self._shards.drop(place)
            if not self.files.refresh(self._commit(place).path):
                raise
        return self._record(place, position - self._starts[place])

    def _record(self, place: int, number: int) -> Record:
        shard = self._shards.get(place, self._open_shard)
        record = shard.record(number)
        self._shards.done(place, shard)
        return record

    @property
    def starts(self) -> list[int]:
        """Position of the first record of each shard of `commits`, and last the number of records."""
        return list(self._starts)

    @property
    def commit_identities(self) -> list[int]:
        """`commit_identity` of each shard of `commits`, as they were when the reader was opened."""
        return list(self._identities)

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """T of each record: ids, int64 [n]."""
        return self._length("token").astype(np.int64)

    @property
    def sequence_lengths(self) -> NDArray[np.int64]:
        """L of each record: positions, vision tokens included, int64 [n]."""
        return self._length("length").astype(np.int64)

    @property
    def num_vision(self) -> NDArray[np.int64]:
        """P of each record: vision tokens of all its images, int64 [n]."""
        return self._length("vision").astype(np.int64)

    @property
    def num_vision_top(self) -> NDArray[np.int64]:
        """K of each record: selected vision tokens; 0 where none are stored, int64 [n]."""
        return self._length("top").astype(np.int64)

    @property
    def num_queries(self) -> NDArray[np.int64]:
        """Q of each record, int64 [n]."""
        return self._length("query").astype(np.int64)

    @property
    def num_supervised(self) -> NDArray[np.int64]:
        """N of each record, int64 [n]."""
        return self._length("supervised").astype(np.int64)

    @property
    def num_images(self) -> NDArray[np.int64]:
        """Images of each record, int64 [n]."""
        return self._length("num_images").astype(np.int64)

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """Whether each record has an image, bool [n]."""
        return self._length("vision") > 0

    @cached_property
    def dataset_index(self) -> NDArray[np.int64]:
        """Each record's position in the data set, int64 [n]."""
        return self._concatenated([shard.tables.field("dataset_index") for shard in self._all_shards()], np.int64)

    @property
    def sources(self) -> list[str]:
        """Names of the data sets in the order of their samples; the store's own name if it lists none."""
        return [source.name for source in self.manifest.all_sources()] or [PurePath(self.path).name or "store"]

    @cached_property
    def source_of(self) -> NDArray[np.int64]:
        """Data set of each record, as a position in `sources`, int64 [n]."""
        ends = np.cumsum([source.num_samples for source in self.manifest.all_sources()])
        return np.searchsorted(ends, self.dataset_index, side="right").astype(np.int64)

    @cached_property
    def keys(self) -> KeyTable:
        """Each record's content hash, hex."""
        rows = [shard.keys() for shard in self._all_shards()]
        return KeyTable(np.concatenate([np.empty((0, 32), np.uint8), *rows]))

    @cached_property
    def ids(self) -> IdTable:
        """Each record's id in the user's data set; may repeat."""
        texts, lengths = [], []
        for shard in self._all_shards():
            texts.append(shard.ids())
            lengths.append(np.diff(shard.tables.ends("id")))
        ends = np.concatenate([[0], np.cumsum(self._concatenated(lengths, np.int64))]).astype(np.int64)
        return IdTable(self._concatenated(texts, np.uint8), ends)

    def find(self, *, key: str | None = None, id: str | None = None, index: int | None = None) -> list[int]:
        """Positions of the records with this key, id or data-set index; may be empty.

        Raises:
            ValueError: not exactly one of the three is given.
        """
        if sum(value is not None for value in (key, id, index)) != 1:
            raise ValueError(f"find(key={key!r}, id={id!r}, index={index!r}): give exactly one")
        if key is not None:
            return self.keys.find(key)
        if id is not None:
            return self.ids.find(id)
        return [int(place) for place in np.flatnonzero(self.dataset_index == index)]

    def conversation(self, position: int) -> list[dict[str, Any]]:
        """The turns of the record at a position, `Record.conversations`; its targets are not read.

        Raises:
            IndexError: there is no such position.
            CorruptStoreError: as `reader[position]`.
        """
        number = range(len(self))[position]
        place = bisect_right(self._starts, number) - 1
        shard = self._shards.get(place, self._open_shard)
        turns = shard.conversation(number - self._starts[place])
        self._shards.done(place, shard)
        return turns

    def attachment(self, name: str) -> Path:
        """A store-level file, such as `tokenizer.model`; verified on the first call.

        Raises:
            StoreError: the store has no attachment of that name.
            CorruptStoreError: the file is missing or damaged.
        """
        if name not in self._attachments:
            self._attachments[name] = verified_attachment(self.files, self.manifest, name)
        return self._attachments[name]

    def logprobs(self, position: int) -> Logprobs:
        """The teacher's log-probabilities at the supervised positions of a record.

        `DenseLogprobs` [N, V] where the store keeps logits or hidden states, `SparseLogprobs` where it keeps some
        tokens per position. Both have `of(ids)` and `dense()`.

        Raises:
            IndexError: there is no such position.
            StoreError: the store keeps nothing of the distribution.
            CorruptStoreError: as `reader[position]`, or the attached lm_head is damaged.
        """
        where = f"store {self.files.location}"
        return teacher_logprobs(self[position].logits, self.manifest, self._lm_head, where)

    def root_hash(self) -> str:
        """One hash of the committed content, 64 hex digits; equal for equal targets (`read/root_hash.py`)."""
        return root_hash(self.files, self.manifest)

    @cached_property
    def _lm_head(self) -> LmHead | None:
        return open_lm_head(self.files, self.manifest)

    @cached_property
    def _attachments(self) -> dict[str, Path]:
        return {}

    def _length(self, name: str) -> NDArray[np.int32]:
        lengths: NDArray[np.int32] = self._lengths[LENGTHS.index(name)]
        return lengths

    @cached_property
    def _lengths(self) -> NDArray[np.int32]:
        """The numbers `LENGTHS` of each record, int32 [numbers, n]."""
        rows = [lengths_of(shard.tables, self.manifest) for shard in self._all_shards()]
        return np.concatenate([np.empty((len(LENGTHS), 0), np.int32), *rows], axis=1)

    @staticmethod
    def _concatenated(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *parts])

    def _all_shards(self) -> Iterator[OpenShard]:
        """Every shard once, opened separately from those in use; each is closed before the next one."""
        places = range(len(self.commits))
        return (OpenShard(self.files, self.manifest, self._codec, self._commit(place)) for place in places)

    def _shard_cache(self) -> ShardCache:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        max_files = MAX_OPEN_FILES if allowed == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, allowed // 2)
        files_per_shard = get_backend(self.manifest.backend).files_per_shard
        return ShardCache(max(1, min(MAX_OPEN_SHARDS, max_files // files_per_shard)))

    def _open_shard(self, place: int) -> OpenShard:
        shard = OpenShard(self.files, self.manifest, self._codec, self._commit(place))
        if place not in self._described:
            shard.source.check_descriptions()
            self._described.add(place)
        return shard

    def _commit(self, place: int) -> CommitRecord:
        """The commit record of a shard, loaded again: it must be the one that existed when the reader was opened.

        Raises:
            StoreError: the shard was replaced, so that this reader's lengths, ids and order are not the shard's.
        """
        commit = self.commits[place]
        if commit_identity(commit) != self._identities[place]:
            raise StoreError(
                f"store {self.files.location}, shard {commit.shard}: was done again since this process opened the "
                "store; run the same command again"
            )
        return commit

    def _checked_heads(self) -> tuple[list[CommitHead], list[int]]:
        """The head and the identity of each commit record; few whole records are in memory at a time."""
        commits = load_commits(self.files, self.commits.shards.tolist(), self.manifest.shard_hash)
        heads: list[tuple[CommitHead, int]] = []
        with ThreadPoolExecutor(STAT_THREADS) as pool:
            while batch := list(islice(commits, STAT_BATCH)):
                heads += pool.map(self._checked_head, batch)
        return [head for head, _ in heads], [identity for _, identity in heads]

    def _checked_head(self, commit: CommitRecord) -> tuple[CommitHead, int]:
        where = f"store {self.files.location}, shard {commit.shard}"
        planned = self.manifest.planned_size(commit.shard)
        held = commit.num_records + len(commit.quarantined)
        if held != planned:
            raise CorruptStoreError(
                f"{where}: accounts for {held} samples, the plan has {planned}; delete its commit record and dump again"
            )
        problems = missing_or_resized(self.files, commit) if self.files.checks_sizes else []
        if problems:
            raise CorruptStoreError(
                f"{where}: {problems[0]}; restore it from a copy, or delete its commit record and dump again"
            )
        return commit.head(), commit_identity(commit)


def commit_identity(commit: CommitRecord) -> int:
    """A small number that differs between two commits of a shard."""
    return crc32c(" ".join([commit.folder, *(entry.sha256 for entry in commit.files)]).encode())


class CommitLog(Sequence[CommitRecord]):
    """The commit records of a store, each loaded and checked on request: ten thousand do not fit into memory."""

    def __init__(self, files: StoreFiles, shards: Sequence[int], manifest: Manifest) -> None:
        self.files, self.shards, self._manifest = files, np.array(shards, np.int64), manifest

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, place: int) -> CommitRecord: ...
    @overload
    def __getitem__(self, place: slice) -> list[CommitRecord]: ...
    def __getitem__(self, place: int | slice) -> CommitRecord | list[CommitRecord]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return load_commit(self.files, int(self.shards[place]), self._manifest.shard_hash)
