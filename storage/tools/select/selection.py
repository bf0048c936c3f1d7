"""A list of chosen samples of a store: a sealed JSON file that training takes (`samples` of a listed store).

It names the samples by their index in the data set. A hash of the keys of all samples ties it to the data of the store:
it holds for a store of the same samples with other targets, codecs or layout, and for no other.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.disk.whole_file import write_whole
from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.sealed_json import seal, unseal

KIND = "alignkd selection 1"
# about 25 million samples
MAX_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Chosen samples.

    Attributes:
        samples_hash: `samples_hash` of the store from which they were chosen.
        num_samples: samples of that store.
        by: the criterion.
        settings: what decided the choice: bounds, sources of scores. JSON-able.
        kept: index in the data set of each chosen sample, int64, ascending.
        store: where the store was, for messages.
        without_score: samples that have no score.
    """

    samples_hash: str
    num_samples: int
    by: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kept: NDArray[np.int64]
    store: str = ""
    without_score: int = 0

    @property
    def dropped(self) -> int:
        """Samples that are not kept."""
        return self.num_samples - len(self.kept)

    @property
    def content_hash(self) -> str:
        """16 hex digits, equal for the same samples of the same data, whatever the criterion."""
        content = self.samples_hash.encode() + self.kept.astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        document = {
            "kind": KIND,
            "store": {"path": self.store, "samples_hash": self.samples_hash, "num_samples": self.num_samples},
            "by": self.by,
            "settings": dict(self.settings),
            "counts": {"kept": len(self.kept), "dropped": self.dropped, "without_score": self.without_score},
            "kept": self.kept.tolist(),
        }
        write_whole(path, seal(document))

    @classmethod
    def read(cls, path: Path) -> "Selection":
        """The selection in a file.

        Raises:
            StoreError: it is missing, damaged, or another kind of file.
        """
        if not path.is_file():
            raise StoreError(
                f"{path}: not a file; write the list of samples by `alignkd shards select STORE --out {path}`"
            )
        try:
            document = unseal(path, MAX_BYTES)
            if document["kind"] != KIND:
                raise KeyError("kind")
            store = document["store"]
            kept = np.array(document["kept"], np.int64).reshape(-1)
            found = cls(
                samples_hash=str(store["samples_hash"]),
                num_samples=int(store["num_samples"]),
                by=str(document["by"]),
                settings=document["settings"],
                kept=kept,
                store=str(store["path"]),
                without_score=int(document["counts"]["without_score"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, StoreError) and not isinstance(error, CorruptStoreError):
                raise
            raise StoreError(
                f"{path}: not a list of samples that `alignkd shards select` wrote, or it was edited; make it again"
            ) from None
        return found

    def positions(self, reader: StoreReader, path: Path | str = "the list") -> NDArray[np.int64]:
        """Positions of the chosen samples in a store, int64, ascending.

        Args:
            path: names the list in errors.

        Raises:
            StoreError: the list was made for other samples, or an index is not in the store.
        """
        if (found := samples_hash(reader)) != self.samples_hash:
            raise StoreError(
                f"{path}: was made for {self.num_samples} samples of store {self.store} (hash "
                f"{self.samples_hash[:12]}), store {reader.path} has {len(reader)} samples (hash {found[:12]}); choose "
                "its samples with `alignkd shards select`"
            )
        return np.flatnonzero(np.isin(reader.dataset_index, self.kept)).astype(np.int64)


def samples_hash(reader: StoreReader) -> str:
    """A hash of index and key of all samples of a store, 64 hex digits; targets, codecs and layout do not matter."""
    order = np.argsort(reader.dataset_index, kind="stable")
    hashed = hashlib.sha256(reader.dataset_index[order].astype("<i8").tobytes())
    hashed.update(np.ascontiguousarray(reader.keys.rows[order]).tobytes())
    return hashed.hexdigest()
