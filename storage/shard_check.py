"""What can be wrong with a shard, in words: files, arrays, tables, records. Used after writing and by verify."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from storage.backend import ShardSource
from storage.checksum import file_sha256
from storage.columns import Column
from storage.commits import CommitRecord, missing_or_resized
from storage.errors import CorruptStoreError, StoreError
from storage.open_shard import OpenShard
from storage.record import Record, TruncatedLogits

# rows read at once while scanning a whole array; bounds the memory of a check
SCAN_BYTES = 1 << 24


def file_problems(folder: Path, commit: CommitRecord) -> list[str]:
    """Files that are absent, of another size, with another checksum, or not of this shard."""
    problems = missing_or_resized(folder, commit)
    if problems:
        return problems
    for entry in commit.files:
        found = file_sha256(folder / entry.path)
        if found != entry.sha256:
            problems.append(f"{folder / entry.path}: sha256 is {found[:12]}, committed {entry.sha256[:12]}")
    listed = {folder / entry.path for entry in commit.files}
    foreign = sorted(path for path in folder.rglob("*") if path.is_file() and path not in listed)
    return problems + [f"{path}: is not part of the committed shard" for path in foreign]


def array_problems(source: ShardSource, columns: Sequence[Column], commit: CommitRecord) -> list[str]:
    """Arrays with a damaged chunk or index; reads every chunk."""
    problems = []
    for column in columns:
        if column.name not in commit.arrays:
            problems.append(f"shard {commit.shard}, array {column.name}: is not in the commit record")
            continue
        rows = commit.arrays[column.name].shape[0]
        step = max(1, SCAN_BYTES // max(1, column.row_bytes))
        try:
            for start in range(0, rows, step):
                source.read(column.name, start, min(rows, start + step))
        except CorruptStoreError as error:
            problems.append(str(error))
    return problems


def table_problems(shard: OpenShard, commit: CommitRecord) -> list[str]:
    """Offsets that fall, or that do not end where the arrays end."""
    where = f"shard {commit.shard}"
    problems = []
    falling = np.argwhere(np.diff(shard.offsets, axis=0) < 0)
    if falling.size or shard.offsets[0].any():
        row = int(falling[0, 0]) if falling.size else 0
        problems.append(f"{where}, array offsets: not rising from 0, first at record {row}")
    for column in shard.codec.columns:
        rows = commit.arrays[column.name].shape[0]
        expected = shard.rows_of(column.group)
        if column.name != "offsets" and rows != expected:
            problems.append(f"{where}, array {column.name}: has {rows} rows, offsets say {expected}")
    return problems


def record_problems(shard: OpenShard, commit: CommitRecord, planned: Sequence[int]) -> list[str]:
    """Records that are not the planned samples, or that the checks of `Record` would have refused."""
    problems = []
    skipped = {sample.index for sample in commit.quarantined}
    expected = [index for index in planned if index not in skipped]
    found = shard.records[:, 0].tolist()
    if found != expected:
        problems.append(f"shard {commit.shard}: holds samples {found[:4]}..., the plan says {expected[:4]}...")
    for number in range(commit.num_records):
        try:
            _check_again(shard.record(number))
        except (StoreError, KeyError, IndexError, ValueError) as error:
            problems.append(f"shard {commit.shard}, record {number} (index {found[number]}): {error}")
    return problems


def _check_again(record: Record) -> None:
    fields = dict(record.__dict__)
    if isinstance(record.logits, TruncatedLogits):
        fields["logits"] = TruncatedLogits(**record.logits.__dict__)
    Record(**fields)
