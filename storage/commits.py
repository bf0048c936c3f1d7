"""Commit records: the only proof that a shard exists. Readers list these, never the shard files."""

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import CorruptStoreError, StoreError
from storage.sealed_json import unseal
from storage.sharding_layout import ArrayLayout

COMMITS = "commits"
SHARDS = "shards"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """One file of a shard; the path is relative to the shard's folder, sha256 in hex."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ArrayEntry(_Model):
    """Shape of a stored array and of its inner chunks."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    def layout(self) -> ArrayLayout:
        return ArrayLayout(self.shape, self.chunk)


class Quarantined(_Model):
    """A sample that could not be cached, and why; counted, never silently dropped."""

    index: int = Field(ge=0)
    id: str
    reason: str


class Totals(_Model):
    """Sums over the shard's records; `bytes` of all its files."""

    tokens: int = Field(ge=0)
    queries: int = Field(ge=0)
    supervised: int = Field(ge=0)
    images: int = Field(ge=0, description="distinct ones")
    bytes: int = Field(ge=0)


class CommitRecord(_Model):
    """Everything that a reader must find true of a shard."""

    shard: int = Field(ge=0)
    manifest_hash: str
    num_records: int = Field(ge=0)
    quarantined: tuple[Quarantined, ...]
    arrays: dict[str, ArrayEntry]
    files: tuple[FileEntry, ...]
    totals: Totals

    def layouts(self) -> dict[str, ArrayLayout]:
        return {name: entry.layout() for name, entry in self.arrays.items()}


def shard_name(shard: int) -> str:
    return f"{shard:08d}"


def shard_folder(store: Path, shard: int) -> Path:
    return store / SHARDS / shard_name(shard)


def commit_path(store: Path, shard: int) -> Path:
    return store / COMMITS / f"{shard_name(shard)}.json"


def committed_shards(store: Path) -> list[int]:
    """Numbers of the committed shards, rising; other files in the folder are not commits."""
    names = (path.name for path in (store / COMMITS).glob("*.json"))
    return sorted(int(name[:8]) for name in names if re.fullmatch(r"\d{8}\.json", name))


def load_commit(store: Path, shard: int, manifest_hash: str) -> CommitRecord:
    """The commit record of a shard.

    Raises:
        StoreError: it is absent, or belongs to another store or another shard.
        CorruptStoreError: it is damaged.
    """
    path = commit_path(store, shard)
    try:
        commit = CommitRecord.model_validate(unseal(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptStoreError(f"{path}: {first['loc']}: {first['msg']}; delete it and dump again") from None
    if commit.shard != shard:
        raise StoreError(f"{path}: is the record of shard {commit.shard}, expected {shard}; delete the copy")
    if commit.manifest_hash != manifest_hash:
        raise StoreError(
            f"{path}: was committed for manifest {commit.manifest_hash[:12]}, the store's is "
            f"{manifest_hash[:12]}; delete the record and dump again"
        )
    return commit


def missing_or_resized(folder: Path, commit: CommitRecord) -> list[str]:
    """Files of a shard that are not there or not as long as committed, in words."""
    problems = []
    for entry in commit.files:
        path = folder / entry.path
        try:
            size = path.stat().st_size
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
            continue
        if size != entry.bytes:
            problems.append(f"{path}: holds {size} bytes, committed {entry.bytes}")
    return problems
