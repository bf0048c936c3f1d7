"""Deep verification of content: a shard whose every checksum is right but whose numbers cannot be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import alignkd.storage.layouts.rows
import alignkd.storage.write.shard
from alignkd.storage import Manifest, Record, verify_store
from alignkd.storage.layouts.rows import Rows
from alignkd.storage.schema.columns.shard import GROUPS, OFFSETS, RECORD_FIELDS, RECORDS

Change = Callable[[Rows], None]


@contextmanager
def tampering(monkeypatch: pytest.MonkeyPatch, change: Change) -> Iterator[None]:
    """Rows changed between encoding and writing, as a bug would."""
    tables = alignkd.storage.write.shard.ShardWriter._tables

    def changed(self: alignkd.storage.write.shard.ShardWriter, record: Record, rows: Rows) -> Rows:
        made = tables(self, record, rows)
        rows |= made
        change(rows)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(alignkd.storage.write.shard.ShardWriter, "_tables", changed)
        yield


def lower_offsets(rows: Rows) -> None:
    """All rows but those of `shown`, which the tables have twice."""
    kept = GROUPS.index("shown")
    rows[OFFSETS] = np.where(np.arange(len(GROUPS)) == kept, rows[OFFSETS], 0)


def other_images(rows: Rows) -> None:
    rows[RECORDS] = rows[RECORDS] + (np.array(RECORD_FIELDS) == "num_images")


def repeat_index(rows: Rows) -> None:
    rows[RECORDS] = np.where(np.array(RECORD_FIELDS) == "dataset_index", 0, rows[RECORDS])


def far_position(rows: Rows) -> None:
    rows["supervised_positions"] = rows["supervised_positions"] + 1000


def nan_attention(rows: Rows) -> None:
    if "attention" in rows:
        rows["attention"] = np.full_like(rows["attention"], np.nan)


def unnormalised(rows: Rows) -> None:
    rows["tail_logmass"] = rows["tail_logmass"] + 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lower_offsets, "array input_ids: has"),
        (repeat_index, "the plan lists"),
        (other_images, "num_images of record 0 is"),
        (far_position, "supervised_positions spans"),
        (nan_attention, "that are NaN"),
        (unnormalised, "log-sum-exp"),
    ],
)
def test_impossible_numbers_are_named(
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    message: str,
) -> None:
    with tampering(monkeypatch, change):
        store = write_store(tmp_path / "store", make_manifest(num_samples=3, shard_size=3))
    assert verify_store(store).ok
    found = [problem.message for problem in verify_store(store, deep=True).problems]
    assert any(message in text for text in found), found
