"""What can be wrong with a shard, in words: files, tables, records. Used after writing and by verify."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.schema.commit_record import CommitRecord, missing_or_resized

READ_THREADS = 4
FOREIGN = "is not part of the committed shard; move it out of the store, or delete it if nobody needs it"


def file_problems(store: Path, commit: CommitRecord, folder: str | None = None) -> list[str]:
    """Files that are absent, of another size, with another checksum, or not of this shard.

    Args:
        folder: where the shard lies relative to the store, if not where it was committed to.
    """
    problems = missing_or_resized(store, commit, folder)
    if problems:
        return problems
    place = store / (commit.path if folder is None else folder)
    with ThreadPoolExecutor(READ_THREADS) as pool:  # the files are read from disk: one waits while another is hashed
        hashes = list(pool.map(file_sha256, [place / entry.path for entry in commit.files]))
    for entry, found in zip(commit.files, hashes, strict=True):
        if found != entry.sha256:
            problems.append(f"{place / entry.path}: sha256 is {found[:12]}, committed {entry.sha256[:12]}")
    return problems + foreign_files(place, commit)


def foreign_files(place: Path, commit: CommitRecord) -> list[str]:
    """Files in the shard's folder that it was not committed with, but for droppings, in words."""
    listed = {place / entry.path for entry in commit.files}
    found = (path for path in place.rglob("*") if path.is_file() and path not in listed)
    foreign = sorted(path for path in found if not is_dropping(path.relative_to(place).as_posix()))
    return [f"{path}: {FOREIGN}" for path in foreign]


def record_problems(shard: OpenShard, commit: CommitRecord, planned: Sequence[int]) -> list[str]:
    """Records that are not the planned samples, or that the checks of `Record` would have refused."""
    problems = []
    skipped = {sample.index for sample in commit.quarantined}
    expected = [index for index in planned if index not in skipped]
    found = shard.tables.field("dataset_index").tolist()
    if found != expected:
        problems.append(f"shard {commit.shard}: holds samples {found[:4]}..., the plan says {expected[:4]}...")
    for number in range(commit.num_records):
        try:
            shard.record(number).recheck()
        except RemoteError:
            raise
        except (StoreError, KeyError, IndexError, ValueError) as error:
            problems.append(f"shard {commit.shard}, record {number} (index {found[number]}): {error}")
    return problems
