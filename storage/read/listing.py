"""`alignkd shards ls`: the content of each shard of a store, from the commit records alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignkd.storage.files.source import StoreFiles
from alignkd.storage.places import open_files
from alignkd.storage.read.root_hash import RootHash
from alignkd.storage.schema.commit_record import CommitHead, Quarantined, commit_name, load_heads, manifest_and_shards
from alignkd.storage.schema.manifest import FILE_NAME, Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard of the plan; without a commit only `shard` and `planned` have a meaning."""

    shard: int
    committed: bool
    planned: int
    num_records: int = 0
    num_quarantined: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_images: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class StoreListing:
    """Every shard of the plan in order, and the hash of the committed content (`alignkd.storage.read.root_hash`)."""

    shards: list[ShardInfo]
    root_hash: str


def list_shards(path: Path | str | StoreFiles) -> list[ShardInfo]:
    """Every shard of the plan, in order.

    Raises:
        StoreError: not a store, or a damaged commit record.
    """
    files = open_files(path)
    return _list(files, *manifest_and_shards(files), None)


def list_unusable(path: Path | str | StoreFiles) -> Iterator[tuple[int, Quarantined]]:
    """(shard, sample) of every unusable sample, with its reason.

    Raises:
        StoreError: not a store, or a damaged commit record.
    """
    files = open_files(path)
    manifest, shards = manifest_and_shards(files)
    for head, _ in load_heads(files, shards, manifest.shard_hash, whole=False):
        for sample in head.quarantined:
            yield head.shard, sample


def list_store(path: Path | str | StoreFiles) -> StoreListing:
    """Every shard of the plan, and the store's root hash.

    Raises:
        StoreError: not a store, or a damaged commit record.
    """
    files = open_files(path)
    manifest, committed = manifest_and_shards(files)
    root = RootHash(manifest, files.label(FILE_NAME))
    return StoreListing(shards=_list(files, manifest, committed, root), root_hash=root.hexdigest())


def _list(files: StoreFiles, manifest: Manifest, committed: list[int], root: RootHash | None) -> list[ShardInfo]:
    shards = [
        ShardInfo(shard=shard, committed=False, planned=manifest.planned_size(shard))
        for shard in range(manifest.num_shards)
    ]
    heads = load_heads(files, committed, manifest.shard_hash, whole=root is not None)
    for head, document in heads:
        if root is not None:
            root.add(document, files.label(commit_name(head.shard)))
        if head.shard < len(shards):
            shards[head.shard] = shard_info(head, manifest.planned_size(head.shard))
    return shards


def shard_info(head: CommitHead, planned: int) -> ShardInfo:
    """The content of a committed shard; `planned`: samples that the plan gives to it."""
    return ShardInfo(
        shard=head.shard,
        committed=True,
        planned=planned,
        num_records=head.num_records,
        num_quarantined=len(head.quarantined),
        num_tokens=head.totals.tokens,
        num_supervised=head.totals.supervised,
        num_images=head.totals.images,
        num_bytes=head.totals.bytes,
    )
