"""Records of a store shard by shard, also where some of it cannot be read: for tools that must not stop there."""

from collections.abc import Iterator
from dataclasses import dataclass

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.schema.commit_record import CommitRecord, committed_shards, load_commit
from alignkd.storage.schema.manifest import Manifest, read_manifest


@dataclass(frozen=True, kw_only=True)
class UnreadableRecord:
    """A record that cannot be read, or whose values cannot be right; `message` names file, field and place."""

    shard: int
    record: int
    index: int | None
    message: str


class ShardFolder:
    """A store opened without the checks that a reader begins with.

    Attributes:
        manifest: what it promises.
        shards: numbers of the committed shards.
    """

    def __init__(self, files: StoreFiles) -> None:
        """Read the manifest; StoreError where there is none."""
        self.files = files
        self.manifest: Manifest = read_manifest(files)
        self.shards = committed_shards(files)
        self.codec = RecordCodec(self.manifest)
        self._hash = self.manifest.manifest_hash()

    def open(self, shard: int) -> OpenShard:
        """One shard.

        Raises:
            StoreError: its commit record or its tables cannot be read.
        """
        return OpenShard(self.files, self.manifest, self.codec, self.commit(shard))

    def commit(self, shard: int) -> CommitRecord:
        """Its commit record; raises as `load_commit`."""
        return load_commit(self.files, shard, self._hash)

    def unreadable_records(self, shard: int) -> Iterator[UnreadableRecord | None]:
        """For each record of a shard what is wrong with it, None where nothing is; nothing at all for a shard that
        cannot be opened: then none of its records can be read.

        Raises:
            RemoteError: a distant store does not answer, or refuses.
        """
        try:
            opened = self.open(shard)
            indices = opened.tables.field("dataset_index").tolist()
        except RemoteError:
            raise
        except StoreError:
            return
        for number, index in enumerate(indices):
            try:
                opened.record(number).recheck()
            except RemoteError:
                raise
            except (StoreError, KeyError, IndexError, ValueError) as error:
                yield UnreadableRecord(shard=shard, record=number, index=index, message=" ".join(str(error).split()))
            else:
                yield None
