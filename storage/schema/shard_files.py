"""The files of a shard compared with its commit record: after writing, when a store is opened, and by `verify`."""

from collections.abc import Mapping

from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.commit_record import CommitRecord

FOREIGN = "is not part of the committed shard; move it out of the store, or delete it if nobody needs it"


def missing_or_resized(
    files: StoreFiles, commit: CommitRecord, folder: str | None = None, listed: Mapping[str, int] | None = None
) -> list[str]:
    """One line for each committed file that does not exist or has another length.

    Args:
        folder: where the shard lies relative to the store, if not where it was committed to.
        listed: path and length of what exists, if that is known already.
    """
    paths = [f"{folder or commit.path}/{entry.path}" for entry in commit.files]
    sizes = files.sizes(paths) if listed is None else [listed.get(path) for path in paths]
    problems = []
    for entry, path, size in zip(commit.files, paths, sizes, strict=True):
        if size is None:
            problems.append(f"{files.label(path)}: {files.absent}")
        elif size != entry.bytes:
            problems.append(f"{files.label(path)}: holds {size} bytes, committed {entry.bytes}")
    return problems


def foreign_files(
    files: StoreFiles, commit: CommitRecord, folder: str | None = None, listed: Mapping[str, int] | None = None
) -> list[str]:
    """One line for each file in the shard's folder that was not committed, apart from what other software leaves.

    Args:
        folder, listed: as for `missing_or_resized`. A place that cannot be listed has no such files.
    """
    folder = folder or commit.path
    found = files.sizes_below(folder) if listed is None else listed
    committed = {f"{folder}/{entry.path}" for entry in commit.files}
    foreign = [path for path in sorted((found or {}).keys() - committed) if not is_dropping(path[len(folder) + 1 :])]
    return [f"{files.label(path)}: {FOREIGN}" for path in foreign]
