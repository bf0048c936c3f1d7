"""`alignkd shards verify`: read a store and report everything that differs from what was committed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.leftovers import removable_droppings
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.places import open_files
from alignkd.storage.schema.attachments import attachment_path, verified_attachment
from alignkd.storage.schema.commit_record import CommitRecord, load_commit, manifest_and_shards
from alignkd.storage.schema.manifest import FILE_NAME, Manifest
from alignkd.storage.tools.verify.shard import ShardChecker, problems_of

# commit records of a remote store that are fetched at the same time
COMMIT_THREADS = 16
MAX_STORE_FILE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem; `shard` is None if it concerns the whole store."""

    shard: int | None
    message: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked, and its problems; `notes` list what could not be checked."""

    deep: bool
    num_shards: int = 0
    num_records: int = 0
    num_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_store(
    location: Path | str | StoreFiles,
    deep: bool = False,
    on_shard: Callable[[CommitRecord], object] = lambda commit: None,
) -> VerifyReport:
    """Check a store; damage is reported, not raised.

    Args:
        location: the store's folder or URL. Open files are read through their cache; a URL is read past the readers'
            cache, in bounded memory and with at most 4 GiB in the staging folder.
        deep: read every byte and check every record; otherwise only commit records, presence and sizes of files.
        on_shard: called after each shard.

    Returns:
        The report; its figures count committed shards whose record could be read.

    Raises:
        RemoteError: a remote store does not answer, or refuses; the check is then incomplete.
        StoreError: an invalid location.
    """
    if not isinstance(location, Path | str):
        return _verify(location, deep, on_shard)
    files = open_files(location)
    with files.past_caches() if deep else nullcontext(files) as read:
        return _verify(read, deep, on_shard)


def _verify(files: StoreFiles, deep: bool, on_shard: Callable[[CommitRecord], object]) -> VerifyReport:
    try:
        manifest, committed = manifest_and_shards(files)
        get_backend(manifest.backend, files.label(FILE_NAME))
    except RemoteError:
        raise
    except StoreError as error:
        return VerifyReport(deep=deep, problems=[Problem(shard=None, message=str(error))])
    commits, problems = _load_commits(files, manifest, committed)
    problems += _attachment_problems(files, manifest, deep or files.checks_sizes)
    if deep or files.checks_sizes:
        problems += _store_file_problems(files, manifest)
    checker = ShardChecker(files, manifest)
    for commit in commits:
        found = checker.deep(commit) if deep else checker.shallow(commit)
        problems += [Problem(shard=commit.shard, message=message) for message in found]
        on_shard(commit)
    notes = list(checker.files.limits) if deep else []
    notes += _dropping_notes(files, files.droppings())
    if manifest.attachments and not deep and not files.checks_sizes:
        notes.append("of attachments only the presence was checked")
    return VerifyReport(
        deep=deep,
        num_shards=len(commits),
        num_records=sum(commit.num_records for commit in commits),
        num_bytes=sum(commit.totals.bytes for commit in commits),
        problems=problems,
        notes=notes,
    )


def _dropping_notes(files: StoreFiles, paths: list[str]) -> list[str]:
    """At most one line."""
    if not paths:
        return []
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    removable = sum(bool(removable_droppings([path])) for path in paths)
    step = "they do no harm"
    if removable:
        which = "them" if removable == len(paths) else f"{removable} of them"
        step = f"`alignkd shards gc {files.location}` removes {which}"
    return [f"left by a desktop, file server or editor, not part of the store: {files.label(paths[0])}{more}; {step}"]


def _load_commits(files: StoreFiles, manifest: Manifest, found: list[int]) -> tuple[list[CommitRecord], list[Problem]]:
    problems = [
        Problem(shard=shard, message=f"shard {shard}: not committed; run `alignkd dump` again")
        for shard in sorted(set(range(manifest.num_shards)) - set(found))
    ]

    def load(shard: int) -> CommitRecord | Problem:
        try:
            return load_commit(files, shard, manifest.shard_hash)
        except RemoteError:
            raise
        except StoreError as error:
            return Problem(shard=shard, message=str(error))

    with ThreadPoolExecutor(1 if files.checks_sizes else COMMIT_THREADS) as pool:
        loaded = list(pool.map(load, found))
    problems += [entry for entry in loaded if isinstance(entry, Problem)]
    return [entry for entry in loaded if isinstance(entry, CommitRecord)], problems


def _attachment_problems(files: StoreFiles, manifest: Manifest, read: bool) -> list[Problem]:
    problems = []
    for name in manifest.attachments:
        found = problems_of(partial(_attachment_problem, files, manifest, name, read))
        problems += [Problem(shard=None, message=message) for message in found]
    return problems


def _store_file_problems(files: StoreFiles, manifest: Manifest) -> list[Problem]:
    """The files that lead other software to the shards, which stores of schema 2 do not have."""
    problems = []
    expected = get_backend(manifest.backend).store_files if manifest.schema_version > 2 else {}
    for name, content in expected.items():

        def check(name: str = name, content: bytes = content) -> list[str]:
            if files.size(name) is not None and files.read(name, MAX_STORE_FILE_BYTES) == content:
                return []
            return [f"{files.label(name)}: is missing or damaged; take that of another store, which is equal"]

        problems += [Problem(shard=None, message=message) for message in problems_of(check)]
    return problems


def _attachment_problem(files: StoreFiles, manifest: Manifest, name: str, read: bool) -> list[str]:
    """Raises StoreError for a damaged attachment; unless `read`, only its presence is checked."""
    path = attachment_path(name)
    if read:
        verified_attachment(files, manifest, name)
    elif files.size(path) is None:
        return [f"{files.label(path)}: {files.absent}"]
    return []
