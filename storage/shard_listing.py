"""`alignkd shards ls`: what each shard of a store holds, from its commit records alone."""

from dataclasses import dataclass
from pathlib import Path

from storage.commits import committed_shards, load_commit
from storage.manifest import load_manifest


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard of the plan; without a commit only `shard` and `planned` say something."""

    shard: int
    committed: bool
    planned: int
    num_records: int = 0
    num_quarantined: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_images: int = 0
    num_bytes: int = 0


def list_shards(path: Path) -> list[ShardInfo]:
    """Every shard of the plan, in order.

    Raises:
        StoreError: no store, or a commit record that cannot be right.
    """
    path = Path(path)
    manifest = load_manifest(path)
    committed = set(committed_shards(path))
    manifest_hash = manifest.manifest_hash()
    return [
        _info(path, shard, manifest.planned_size(shard), manifest_hash)
        if shard in committed
        else ShardInfo(shard=shard, committed=False, planned=manifest.planned_size(shard))
        for shard in range(manifest.num_shards)
    ]


def _info(path: Path, shard: int, planned: int, manifest_hash: str) -> ShardInfo:
    commit = load_commit(path, shard, manifest_hash)
    return ShardInfo(
        shard=shard,
        committed=True,
        planned=planned,
        num_records=commit.num_records,
        num_quarantined=len(commit.quarantined),
        num_tokens=commit.totals.tokens,
        num_supervised=commit.totals.supervised,
        num_images=commit.totals.images,
        num_bytes=commit.totals.bytes,
    )
