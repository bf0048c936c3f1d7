"""Commit records: the only proof that a shard exists. Readers list these, never the shard files.

A record is checked in two steps, because a store may have ten thousand shards: `CommitHead` for listing and counting,
`CommitRecord` with every array and file.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.manifest import Manifest, read_manifest
from alignkd.storage.schema.sealed_json import unseal_bytes

COMMITS = "commits"
SHARDS = "shards"
# of one record; that of a shard of 1024 samples with every column has about 10 KB
MAX_COMMIT_BYTES = 16 << 20
MAX_SIZE = 2**62
Shape = tuple[int, ...]
# `Manifest.shard_hash`: what the record of each shard must hold as `manifest_hash`; a text stands for all shards
ShardHash = str | Callable[[int], str]

# names that writers give to folders of shards; `gc` removes no others
WRITTEN = re.compile(r"\d{8,}(-[0-9a-f-]{1,90})?")
_FOLDER = re.compile(r"[0-9a-f-]{1,100}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*(/[A-Za-z0-9_][A-Za-z0-9_.]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"\d{8,}\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a shard; the path is relative to the shard's folder, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Shape of a stored array and of its inner chunks (zarr); the same number of dimensions, rows first."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of row blocks and of column blocks."""
        columns = max(1, -(-self.shape[-1] // self.chunk[-1])) if len(self.shape) > 1 else 1
        return -(-self.shape[0] // self.chunk[0]), columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """An unusable sample and the reason; counted, never silently dropped."""

    index: int
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over the shard's records; `images`: distinct images, `bytes`: size of all files."""

    tokens: int
    queries: int
    supervised: int
    images: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CommitHead:
    """A commit record without arrays and files.

    Attributes:
        folder: name of the shard's folder in `shards/`; in a bucket each writer has its own.
    """

    shard: int
    manifest_hash: str
    num_records: int
    quarantined: tuple[Quarantined, ...]
    totals: Totals
    folder: str

    @property
    def num_samples(self) -> int:
        """Records and unusable samples."""
        return self.num_records + len(self.quarantined)

    @property
    def path(self) -> str:
        """The shard's folder relative to the store."""
        return f"{SHARDS}/{self.folder}"


@dataclass(frozen=True, kw_only=True)
class CommitRecord(CommitHead):
    """A commit record: the files of a shard, and what they hold."""

    arrays: Mapping[str, ArrayLayout]
    files: tuple[FileEntry, ...]

    def head(self) -> CommitHead:
        """The record without arrays and files."""
        return CommitHead(**{name: getattr(self, name) for name in CommitHead.__dataclass_fields__})

    def document(self) -> dict[str, Any]:
        """The content of the file in `commits/`."""
        return asdict(self)


def shard_name(shard: int) -> str:
    return f"{shard:08d}"


def shard_folder(store: Path, shard: int) -> Path:
    """The folder that a finished shard is renamed to."""
    return store / SHARDS / shard_name(shard)


def commit_name(shard: int) -> str:
    """Path of a commit record relative to the store."""
    return f"{COMMITS}/{shard_name(shard)}.json"


def commit_path(store: Path, shard: int) -> Path:
    return store / commit_name(shard)


def committed_shards(store: Path | StoreFiles) -> list[int]:
    """Numbers of the committed shards, rising; other files in the folder are ignored."""
    files = LocalFiles(store) if isinstance(store, Path) else store
    numbers = [int(name[:-5]) for name in files.names(COMMITS) if _NAME.fullmatch(name)]
    return sorted(number for number in numbers if number < MAX_SIZE)


def manifest_and_shards(files: StoreFiles) -> tuple[Manifest, list[int]]:
    """The manifest, and the numbers of the committed shards, also if the store grows meanwhile.

    Raises:
        StoreError: as `read_manifest`.
    """
    manifest, shards = read_manifest(files), committed_shards(files)
    if shards and shards[-1] >= manifest.num_shards:
        # an addition is in the manifest before the first of its shards is committed
        manifest = read_manifest(files)
    return manifest, shards


def load_commit(store: Path | StoreFiles, shard: int, manifest_hash: ShardHash) -> CommitRecord:
    """The commit record of a shard.

    Raises:
        StoreError: it is absent, or belongs to another store or another shard.
        CorruptStoreError: it is damaged, or holds a value that no writer writes.
    """
    files = LocalFiles(store) if isinstance(store, Path) else store
    name = commit_name(shard)
    return parse_commit(files.read(name, MAX_COMMIT_BYTES), files.label(name), shard, manifest_hash)


def load_commits(files: StoreFiles, shards: Sequence[int], manifest_hash: ShardHash) -> Iterator[CommitRecord]:
    """The commit records of many shards; raises as `load_commit`."""
    for shard, data in zip(shards, _read_all(files, shards), strict=True):
        yield parse_commit(data, files.label(commit_name(shard)), shard, manifest_hash)


def load_heads(
    files: StoreFiles, shards: Sequence[int], manifest_hash: ShardHash, *, whole: bool = True
) -> Iterator[tuple[CommitHead, dict[str, Any]]]:
    """Faster than `load_commits`: the head, and the document with its arrays and files unchecked.

    Args:
        whole: False leaves out arrays and files, which take most of the time.
    """
    left_out = () if whole else ("arrays", "files")
    for shard, data in zip(shards, _read_all(files, shards), strict=True):
        where = files.label(commit_name(shard))
        document = _document(data, where, shard, manifest_hash, left_out)
        yield CommitHead(**_Parser(where, document).head()), document


def parse_commit(data: bytes, where: str, shard: int, manifest_hash: ShardHash) -> CommitRecord:
    """The commit record in a file's bytes; `where` names the file; raises as `load_commit`."""
    parser = _Parser(where, _document(data, where, shard, manifest_hash))
    parser.only("shard", "manifest_hash", "num_records", "quarantined", "totals", "folder", "arrays", "files")
    return CommitRecord(**parser.head(), arrays=parser.arrays(), files=parser.files())


def _read_all(files: StoreFiles, shards: Sequence[int]) -> Iterator[bytes]:
    return files.read_many([commit_name(shard) for shard in shards], MAX_COMMIT_BYTES)


def _document(
    data: bytes, where: str, shard: int, manifest_hash: ShardHash, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    document = unseal_bytes(data, where, left_out)
    if (found := document.get("shard")) != shard:
        raise StoreError(f"{where}: is the record of shard {found}, expected {shard}; delete the copy")
    expected = manifest_hash if isinstance(manifest_hash, str) else manifest_hash(shard)
    if (other := document.get("manifest_hash")) != expected:
        raise StoreError(
            f"{where}: was committed for manifest {str(other)[:12]}, the store's is {expected[:12]}; "
            "delete the record and dump again"
        )
    return document


class _Parser:
    """Turns a document into checked values; errors name the file and the field."""

    def __init__(self, where: str, document: dict[str, Any]) -> None:
        self.where, self.document = where, document

    def only(self, *names: str) -> None:
        if unknown := sorted(self.document.keys() - set(names)):
            raise self._wrong(unknown[0], "is not a field of a commit record")

    def head(self) -> dict[str, Any]:
        document = self.document
        quarantined = [self._fields(entry, "quarantined", Quarantined) for entry in self._list("quarantined")]
        folder = document.get("folder")
        if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
            raise self._wrong("folder", f"is {str(folder)[:40]!r}, expected digits, a-f and '-'")
        return {
            "shard": document["shard"],
            "manifest_hash": document["manifest_hash"],
            "num_records": self._size("num_records", document.get("num_records")),
            "quarantined": tuple(Quarantined(**entry) for entry in quarantined),
            "totals": Totals(**self._fields(document.get("totals"), "totals", Totals)),
            "folder": folder,
        }

    def arrays(self) -> dict[str, ArrayLayout]:
        arrays = self.document.get("arrays")
        if not isinstance(arrays, dict):
            raise self._wrong("arrays", "is not an object")
        return {name: self._array(name, entry) for name, entry in arrays.items()}

    def files(self) -> tuple[FileEntry, ...]:
        files = []
        for entry in self._list("files"):
            if not _is_file(entry):
                path = self._fields(entry, "files", FileEntry)["path"]
                raise self._wrong("files", f"has an entry for {path[:80]!r}, which cannot be a file of a shard")
            files.append(FileEntry(**entry))
        return tuple(files)

    def _array(self, name: str, entry: Any) -> ArrayLayout:
        try:
            shape, chunk = tuple(entry["shape"]), tuple(entry["chunk"])
        except (TypeError, KeyError):
            raise self._wrong("arrays", f"describes {name[:80]!r} without shape and chunk") from None
        sound = len(shape) == len(chunk) > 0 and set(map(type, shape + chunk)) == {int}
        if not sound or min(shape) < 0 or min(chunk) < 1 or max(shape + chunk) > MAX_SIZE:
            raise self._wrong("arrays", f"gives {name[:80]!r} shape {str(shape)[:80]} and chunk {str(chunk)[:80]}")
        return ArrayLayout(shape, chunk)

    def _list(self, name: str) -> list[Any]:
        values = self.document.get(name)
        if not isinstance(values, list):
            raise self._wrong(name, "is not a list")
        return values

    def _fields(self, entry: Any, name: str, kind: type) -> dict[str, Any]:
        """A JSON object with exactly the fields of `kind`, a dataclass of texts and sizes."""
        types = kind.__annotations__
        if not isinstance(entry, dict) or entry.keys() != types.keys():
            raise self._wrong(name, f"holds {str(entry)[:80]}, expected {', '.join(types)}")
        for field, value in entry.items():
            if types[field] is int:
                self._size(f"{name}.{field}", value)
            elif not isinstance(value, str):
                raise self._wrong(f"{name}.{field}", f"is {str(value)[:80]}, expected a text")
        return entry

    def _size(self, name: str, value: Any) -> int:
        if type(value) is not int or not 0 <= value <= MAX_SIZE:
            raise self._wrong(name, f"is {str(value)[:80]}, expected a number from 0")
        return value

    def _wrong(self, field: str, problem: str) -> CorruptStoreError:
        return CorruptStoreError(f"{self.where}: {field} {problem}; delete it and dump again")


def _is_file(entry: Any) -> bool:
    """Whether a JSON value is a valid entry of a file; fast, because a large store has 300,000 of them."""
    return (
        type(entry) is dict
        and len(entry) == 3
        and type(path := entry.get("path")) is str
        and type(size := entry.get("bytes")) is int
        and type(sha256 := entry.get("sha256")) is str
        and 0 <= size <= MAX_SIZE
        and _FILE.fullmatch(path) is not None
        and _SHA256.fullmatch(sha256) is not None
    )
