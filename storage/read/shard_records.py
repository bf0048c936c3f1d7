"""Records of a store shard by shard, for tools that continue where a part of the store cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.schema.commit_record import CommitRecord, load_commit, manifest_and_shards


@dataclass(frozen=True, kw_only=True)
class UnreadableRecord:
    """A record that cannot be read, or has invalid values; `message` names file and field."""

    shard: int
    record: int
    index: int | None
    message: str


class ShardFolder:
    """A store opened without the checks of `StoreReader`.

    Attributes:
        manifest: settings of the store.
        shards: numbers of the committed shards.
    """

    def __init__(self, files: StoreFiles) -> None:
        """Read the manifest; raises StoreError if it is missing or damaged."""
        self.files = files
        self.manifest, self.shards = manifest_and_shards(files)
        self.codec = RecordCodec(self.manifest)

    def open(self, shard: int) -> OpenShard:
        """One shard.

        Raises:
            StoreError: the commit record or the tables cannot be read.
        """
        return OpenShard(self.files, self.manifest, self.codec, self.commit(shard))

    def commit(self, shard: int) -> CommitRecord:
        """The commit record of a shard; raises as `load_commit`."""
        return load_commit(self.files, shard, self.manifest.shard_hash)

    def unreadable_records(self, shard: int) -> Iterator[UnreadableRecord | None]:
        """One entry per record of a shard, None if it is readable; no entry at all if the shard cannot be opened.

        Raises:
            RemoteError: a remote store does not answer, or refuses.
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
