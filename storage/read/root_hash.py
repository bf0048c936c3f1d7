"""One hash of a store's content: equal for two correct writers of the same targets."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.schema.commit_record import commit_name, committed_shards, load_heads
from alignkd.storage.schema.manifest import FILE_NAME, Manifest


class RootHash:
    """sha256 over the manifest's `whole_hash` and the commits in shard order.

    It excludes what may differ between correct copies: reasons of quarantined samples (they may name folders), names of
    shard folders, and descriptions that other software formats. It also excludes what follows from the rest: shapes of
    arrays, totals.
    """

    def __init__(self, manifest: Manifest, where: str) -> None:
        """`where` names the manifest's file in errors."""
        self._descriptions = tuple(get_backend(manifest.backend, where).descriptions)
        self._hash = hashlib.sha256(manifest.whole_hash.encode())

    def add(self, commit: dict[str, Any], where: str) -> None:
        """Add the document of the next commit record; `where` is its name in errors.

        Raises:
            CorruptStoreError: it contains what no writer writes.
        """
        try:
            files = [
                (entry["path"], entry["bytes"], entry["sha256"])
                for entry in commit["files"]
                if not entry["path"].endswith(self._descriptions)
            ]
            quarantined = [[entry["index"], entry["id"]] for entry in commit["quarantined"]]
            content = [commit["shard"], commit["num_records"], quarantined, files]
        except (KeyError, TypeError, AttributeError):
            raise CorruptStoreError(f"{where}: is not a list of a shard's files; delete it and dump again") from None
        self._hash.update(json.dumps(content, separators=(",", ":")).encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def root_hash(files: StoreFiles, manifest: Manifest, shards: Sequence[int] | None = None) -> str:
    """The root hash of the committed shards, 64 hex digits.

    Args:
        shards: numbers of the shards that count, ascending; None: all that are committed.

    Raises:
        StoreError: a damaged commit record.
    """
    root = RootHash(manifest, files.label(FILE_NAME))
    if shards is None:
        # a store that has grown since the manifest was read has shards that are not of this content
        shards = [shard for shard in committed_shards(files) if shard < manifest.num_shards]
    for head, document in load_heads(files, shards, manifest.shard_hash):
        root.add(document, files.label(commit_name(head.shard)))
    return root.hexdigest()
