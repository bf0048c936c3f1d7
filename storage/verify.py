"""`alignkd shards verify`: read a store again and name everything that is not as committed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from storage.attachments import attachments_of, verified_attachment
from storage.backend import get_backend
from storage.byte_files import LocalFiles
from storage.commits import CommitRecord, committed_shards, load_commit, missing_or_resized
from storage.errors import StoreError
from storage.manifest import Manifest, load_manifest
from storage.open_shard import OpenShard
from storage.order import shard_plan
from storage.record_codec import RecordCodec
from storage.shard_check import file_problems, record_problems


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong; `shard` is None where it concerns the whole store."""

    shard: int | None
    message: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was looked at and what was wrong with it."""

    deep: bool
    num_shards: int = 0
    num_records: int = 0
    num_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_store(
    path: Path, deep: bool = False, on_shard: Callable[[CommitRecord], object] = lambda commit: None
) -> VerifyReport:
    """Check a store; damage is reported, not raised.

    Args:
        path: the store's folder.
        deep: read every byte again and check every record; otherwise only commit records, presence and
            sizes of files.
        on_shard: called after each shard.

    Returns:
        The report; numbers count committed shards whose record could be read.
    """
    path = Path(path)
    try:
        manifest = load_manifest(path)
    except StoreError as error:
        return VerifyReport(deep=deep, problems=[Problem(shard=None, message=str(error))])
    commits, problems = _load_commits(path, manifest)
    problems += _attachment_problems(path, manifest)
    checker = _ShardChecker(path, manifest)
    for commit in commits:
        found = checker.deep(commit) if deep else checker.shallow(commit)
        problems += [Problem(shard=commit.shard, message=message) for message in found]
        on_shard(commit)
    return VerifyReport(
        deep=deep,
        num_shards=len(commits),
        num_records=sum(commit.num_records for commit in commits),
        num_bytes=sum(commit.totals.bytes for commit in commits),
        problems=problems,
    )


def _load_commits(path: Path, manifest: Manifest) -> tuple[list[CommitRecord], list[Problem]]:
    commits, problems = [], []
    found = committed_shards(path)
    for shard in sorted(set(range(manifest.num_shards)) - set(found)):
        message = f"shard {shard}: not committed; run `alignkd dump` again"
        problems.append(Problem(shard=shard, message=message))
    manifest_hash = manifest.manifest_hash()
    for shard in found:
        try:
            commits.append(load_commit(path, shard, manifest_hash))
        except StoreError as error:
            problems.append(Problem(shard=shard, message=str(error)))
    return commits, problems


def _attachment_problems(path: Path, manifest: Manifest) -> list[Problem]:
    problems = []
    for name in attachments_of(manifest):
        try:
            verified_attachment(LocalFiles(path), manifest, name)
        except StoreError as error:
            problems.append(Problem(shard=None, message=str(error)))
    return problems


class _ShardChecker:
    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.codec = RecordCodec(manifest)
        self.plan = shard_plan(manifest.num_samples, manifest.shard_size, manifest.seed)

    def shallow(self, commit: CommitRecord) -> list[str]:
        return self._accounting(commit) + missing_or_resized(self.path, commit)

    def deep(self, commit: CommitRecord) -> list[str]:
        """Bytes first; the meaning of damaged bytes is not looked at."""
        problems = self._accounting(commit) + missing_or_resized(self.path, commit)
        if problems:
            return problems
        problems = self._damage(commit)
        # a damaged chunk says more than a damaged file: one line for each file
        for problem in file_problems(self.path, commit):
            path = problem.partition(": sha256 is")[0]
            if not any(named.startswith(f"{path}: ") for named in problems):
                problems.append(problem)
        return problems or self._content_problems(commit)

    def _damage(self, commit: CommitRecord) -> list[str]:
        backend, files = get_backend(self.manifest.backend), LocalFiles(self.path)
        try:
            return backend.open(files, commit.path, self.manifest, self.codec.columns, commit).damage()
        except StoreError as error:
            return [str(error)]

    def _accounting(self, commit: CommitRecord) -> list[str]:
        if commit.shard >= self.manifest.num_shards:
            return [f"shard {commit.shard}: the plan has {self.manifest.num_shards} shards; delete its record"]
        held, planned = commit.num_records + len(commit.quarantined), self.manifest.planned_size(commit.shard)
        if held != planned:
            return [f"shard {commit.shard}: accounts for {held} samples, the plan has {planned}"]
        return []

    def _content_problems(self, commit: CommitRecord) -> list[str]:
        try:
            shard = OpenShard(LocalFiles(self.path), self.manifest, self.codec, commit)
            problems = shard.source.structure_problems()
        except StoreError as error:
            return [str(error)]
        return problems or record_problems(shard, commit, self.plan[commit.shard].tolist())
