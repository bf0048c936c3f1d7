"""Two stores of one teacher become one, whose indices tell where each sample came from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Record, StoreError, StoreReader, verify_store
from alignkd.storage.tools.merge import merge_stores

TreeBytes = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def write_part(tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any) -> Callable[..., Path]:
    """write_part(name, samples, first, ...): a store of the samples that `make_record` numbers from `first`."""

    def write(name: str, samples: int, first: int, quarantine: tuple[int, ...] = (), **fields: Any) -> Path:
        manifest = make_manifest(num_samples=samples, data_fingerprint={"conversations": name}, **fields)

        def record_of(index: int) -> Record:
            # text-only or not by its own number, so that a record is the same wherever it stands
            record = make_record(manifest, first + index)
            return Record(**{**record.__dict__, "index": index})

        return write_store(tmp_path / name, manifest, record_of=record_of, quarantine=quarantine)

    return write


def test_every_record_of_both_with_shifted_indices(
    write_part: Callable[..., Path], tmp_path: Path, assert_same: Any, tree_bytes: TreeBytes
) -> None:
    a, b = (
        write_part("a", 6, 0, quarantine=(1,)),
        write_part("b", 5, 100, quarantine=(4,), backend="webdataset", seed=8),
    )
    counted: list[int] = []
    report = merge_stores([a, b], tmp_path / "all", progress=counted.append)
    assert (report.num_records, report.num_quarantined, report.duplicates, sum(counted)) == (9, 2, [], 11)
    merged = StoreReader(tmp_path / "all")
    assert merged.manifest.backend == "zarr" and merged.manifest.num_samples == 11
    assert merged.manifest.data_fingerprint["source_001"].startswith("6..10 ")
    assert sorted((entry.index, entry.reason) for entry in merged.quarantined) == [
        (1, "image is damaged"),
        (10, "image is damaged"),
    ]
    for source, start in ((StoreReader(a), 0), (StoreReader(b), 6)):
        for record in (source[position] for position in range(len(source))):
            [place] = merged.find(key=record.key)
            assert_same(merged[place], Record(**{**record.__dict__, "index": record.index + start}))
    assert verify_store(tmp_path / "all", deep=True).ok
    merge_stores([a, b], tmp_path / "again")
    assert tree_bytes(tmp_path / "again") == tree_bytes(tmp_path / "all")
    assert merge_stores([a, b], tmp_path / "all").shards_written == 0
    with pytest.raises(StoreError, match="was made with other settings"):
        merge_stores([b, a], tmp_path / "all")


def test_records_in_two_stores(write_part: Callable[..., Path], tmp_path: Path) -> None:
    a, b = write_part("a", 6, 0), write_part("b", 5, 4)  # numbers 4 and 5 are in both
    with pytest.raises(
        StoreError, match=r"2 records are in two stores: index 0 of \S+/b is index 4 of \S+/a; "
    ) as error:
        merge_stores([a, b], tmp_path / "all")
    assert "--keep-first" in str(error.value) and not (tmp_path / "all").exists()
    report = merge_stores([a, b], tmp_path / "all", keep_first=True)
    assert [(twin.index, twin.first_index) for twin in report.duplicates] == [(6, 4), (7, 5)]
    merged = StoreReader(tmp_path / "all")
    assert len(merged) == 9 and sorted(entry.reason for entry in merged.quarantined) == [
        "merged: same key as sample 4",
        "merged: same key as sample 5",
    ]
    assert len(set(merged.keys)) == 9


def test_what_one_source_holds_twice_stays(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any, write_part: Callable[..., Path]
) -> None:
    manifest = make_manifest(num_samples=3)
    twice = write_store(
        tmp_path / "twice",
        manifest,
        record_of=lambda i: Record(**{**make_record(manifest, i).__dict__, "key": "ab" * 32}),
    )
    assert merge_stores([twice, write_part("b", 2, 50)], tmp_path / "all").num_records == 5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"fingerprint": {"weights": "w1", "tokenizer": "t0"}}, "fingerprint.weights is w0 in .*/a, w1 in .*/b"),
        ({"inputs": "embed"}, "inputs is reference in .*/a, embed in .*/b"),
    ],
)
def test_other_teachers_are_refused(
    write_part: Callable[..., Path], tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(StoreError, match=named):
        merge_stores([write_part("a", 2, 0), write_part("b", 2, 10, **fields)], tmp_path / "all")
    with pytest.raises(StoreError, match="is both source and target"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "b")
    with pytest.raises(StoreError, match="1 store given to merge"):
        merge_stores([tmp_path / "a"], tmp_path / "all")
