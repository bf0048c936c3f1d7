"""Reading a store: records by position, and their lengths and ids without touching the payload."""

from bisect import bisect_right
from collections import OrderedDict
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.columns import GROUPS, RECORD_FIELDS
from storage.commits import (
    CommitRecord,
    Quarantined,
    committed_shards,
    load_commit,
    missing_or_resized,
    shard_folder,
)
from storage.errors import CorruptStoreError, StoreError
from storage.manifest import Manifest, load_manifest
from storage.open_shard import OpenShard
from storage.record import Record
from storage.record_codec import RecordCodec

# each open shard holds up to about 16 file descriptors; 1024 per process is a common limit
MAX_OPEN_SHARDS = 24


class StoreReader:
    """The committed records of a store, shard after shard in their written order.

    `reader[i]` verifies the checksum of every chunk it reads. Float targets come in their stored dtype: a
    float16 target stays float16, so that half the bytes travel and the training device widens them.
    Readers can be forked, pickled and shared by threads.

    Attributes:
        path: the store's folder.
        manifest: what the store promises.
        commits: the commit record of each shard, by shard number.
        quarantined: samples that could not be cached, with reasons.
    """

    def __init__(self, path: Path, *, allow_incomplete: bool = False) -> None:
        """Open a store and check that all committed files are there in their committed size.

        Raises:
            StoreError: no store, or shards of the plan are missing and `allow_incomplete` is not set.
            CorruptStoreError: a file is missing or has another size.
        """
        self.path = Path(path)
        self.manifest: Manifest = load_manifest(self.path)
        manifest_hash = self.manifest.manifest_hash()
        found = committed_shards(self.path)
        if not allow_incomplete and len(found) < self.manifest.num_shards:
            raise StoreError(
                f"store {self.path}: {len(found)} of {self.manifest.num_shards} shards committed; "
                "run `alignkd dump` again"
            )
        self.commits = [load_commit(self.path, shard, manifest_hash) for shard in found]
        for commit in self.commits:
            self._check_commit(commit)
        self.quarantined: list[Quarantined] = list(chain.from_iterable(c.quarantined for c in self.commits))
        self._codec = RecordCodec(self.manifest)
        self._starts = [0, *accumulate(commit.num_records for commit in self.commits)]
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, position: int) -> Record:
        """The record at a position, 0 to `len(self) - 1`.

        Raises:
            IndexError: there is no such position.
            CorruptStoreError: naming shard, array and chunk.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a store with {len(self)} records")
        place = bisect_right(self._starts, position) - 1
        return self._shard(place).record(position - self._starts[place])

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """T of each record: tokens before the image is spliced in, int64 [n]."""
        return self._lengths[:, GROUPS.index("token")]

    @property
    def sequence_lengths(self) -> NDArray[np.int64]:
        """L of each record: tokens with the image's placeholder replaced by P vision tokens, int64 [n]."""
        return self.num_tokens + self._lengths[:, GROUPS.index("vision")] - self.has_image

    @property
    def num_queries(self) -> NDArray[np.int64]:
        """Q of each record, int64 [n]."""
        return self._lengths[:, GROUPS.index("query")]

    @property
    def num_supervised(self) -> NDArray[np.int64]:
        """N of each record, int64 [n]."""
        return self._lengths[:, GROUPS.index("supervised")]

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """Whether each record has an image, bool [n]."""
        return self._lengths[:, GROUPS.index("vision")] > 0

    @cached_property
    def dataset_index(self) -> NDArray[np.int64]:
        """Each record's position in the data set, int64 [n]."""
        column = RECORD_FIELDS.index("dataset_index")
        return np.concatenate([_NO_INDEX, *(shard.records[:, column] for shard in self._all_shards())])

    @cached_property
    def keys(self) -> list[str]:
        """Each record's content hash, hex."""
        return list(chain.from_iterable(shard.keys() for shard in self._all_shards()))

    @cached_property
    def ids(self) -> list[str]:
        """Each record's id in the user's data set; may repeat."""
        return list(chain.from_iterable(shard.ids() for shard in self._all_shards()))

    def find(self, *, key: str | None = None, id: str | None = None, index: int | None = None) -> list[int]:
        """Positions of the records with this key, id or data-set index; empty if there are none.

        Raises:
            ValueError: not exactly one of the three is given.
        """
        if sum(value is not None for value in (key, id, index)) != 1:
            raise ValueError(f"find(key={key!r}, id={id!r}, index={index!r}): give exactly one")
        if index is not None:
            return [int(place) for place in np.flatnonzero(self.dataset_index == index)]
        values, wanted = (self.keys, key) if key is not None else (self.ids, id)
        return [place for place, value in enumerate(values) if value == wanted]

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """Rows of each record in each group, [n, groups]."""
        return np.concatenate([_NO_LENGTHS, *(np.diff(s.offsets, axis=0) for s in self._all_shards())])

    def _all_shards(self) -> Any:
        """Every shard once, opened apart from those in use; each closes when the next one comes."""
        return (OpenShard(self.path, self.manifest, self._codec, commit) for commit in self.commits)

    def _shard(self, place: int) -> OpenShard:
        shard = self._open.pop(place, None)
        if shard is None:
            shard = OpenShard(self.path, self.manifest, self._codec, self.commits[place])
        self._open[place] = shard
        while len(self._open) > MAX_OPEN_SHARDS:
            # files close with the last reference: a thread that still reads the shard can finish
            self._open.popitem(last=False)
        return shard

    def _check_commit(self, commit: CommitRecord) -> None:
        planned = self.manifest.planned_size(commit.shard)
        held = commit.num_records + len(commit.quarantined)
        if held != planned:
            raise CorruptStoreError(
                f"store {self.path}, shard {commit.shard}: accounts for {held} samples, the plan has {planned}; "
                "delete its commit record and dump again"
            )
        problems = missing_or_resized(shard_folder(self.path, commit.shard), commit)
        if problems:
            raise CorruptStoreError(
                f"store {self.path}, shard {commit.shard}: {problems[0]}; restore it from a copy, or delete its "
                "commit record and dump again"
            )


_NO_INDEX = np.empty(0, np.int64)
_NO_LENGTHS = np.empty((0, len(GROUPS)), np.int64)
