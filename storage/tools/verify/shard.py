"""What can be wrong with one committed shard: its size in the plan, its files, its tables, its records."""

from collections.abc import Callable, Sequence

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.schema.commit_record import CommitRecord
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.plan import store_plan
from alignkd.storage.tools.verify.files import ShardFiles


class ShardChecker:
    """Checks the shards of one store; a problem is one line that names the file or the record."""

    def __init__(self, files: StoreFiles, manifest: Manifest) -> None:
        self.files, self.manifest = ShardFiles(files), manifest
        self.codec = RecordCodec(manifest)
        self.plan = store_plan(manifest)

    def shallow(self, commit: CommitRecord) -> list[str]:
        """Compare number of samples, presence and sizes of files."""
        return self._accounting(commit) + self.files.sizes(commit)

    def deep(self, commit: CommitRecord) -> list[str]:
        """Read every byte, and check the records if the bytes are right."""
        if problems := self.shallow(commit):
            return problems
        problems = self._all(commit)
        # a transfer may damage bytes too: report only what a second transfer confirms
        return self._all(commit) if problems and self.files.files.refresh(commit.path) else problems

    def _all(self, commit: CommitRecord) -> list[str]:
        in_files = self.files.contents(commit)
        problems = problems_of(lambda: self._damage(commit))
        # the message about a chunk is more precise than the one about its file: one line for each file
        for problem in in_files:
            path = problem.partition(": sha256 is")[0]
            if not any(named.startswith(f"{path}: ") for named in problems):
                problems.append(problem)
        return problems or problems_of(lambda: self._content_problems(commit))

    def _damage(self, commit: CommitRecord) -> list[str]:
        backend = get_backend(self.manifest.backend)
        return backend.open(self.files.files, commit.path, self.manifest, self.codec.columns, commit).damage()

    def _accounting(self, commit: CommitRecord) -> list[str]:
        if commit.shard >= self.manifest.num_shards:
            return [f"shard {commit.shard}: the plan has {self.manifest.num_shards} shards; delete its record"]
        held, planned = commit.num_records + len(commit.quarantined), self.manifest.planned_size(commit.shard)
        if held != planned:
            return [f"shard {commit.shard}: accounts for {held} samples, the plan has {planned}"]
        return []

    def _content_problems(self, commit: CommitRecord) -> list[str]:
        shard = OpenShard(self.files.files, self.manifest, self.codec, commit)
        problems = shard.source.structure_problems()
        return problems or _record_problems(shard, commit, self.plan[commit.shard].tolist())


def problems_of(check: Callable[[], list[str]]) -> list[str]:
    """What a check finds, or the StoreError that it raises; RemoteError passes."""
    try:
        return check()
    except RemoteError:
        raise
    except StoreError as error:
        return [str(error)]


def _record_problems(shard: OpenShard, commit: CommitRecord, planned: Sequence[int]) -> list[str]:
    """Records that are not the planned samples, or that the checks of `Record` refuse."""
    problems = []
    skipped = {sample.index for sample in commit.quarantined}
    expected = [index for index in planned if index not in skipped]
    found = shard.tables.field("dataset_index").tolist()
    if found != expected:
        problems.append(f"shard {commit.shard}: holds samples {found[:4]}..., the plan lists {expected[:4]}...")
    for number in range(commit.num_records):
        try:
            shard.record(number).recheck()
        except RemoteError:
            raise
        except (StoreError, KeyError, IndexError, ValueError) as error:
            problems.append(f"shard {commit.shard}, record {number} (index {found[number]}): {error}")
    return problems
