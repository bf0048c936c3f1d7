"""Parquet: rows of any table and any row groups, in bounded memory; damaged files."""

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.vlm.data.entries.dialects import CAPTIONS, LISTS, PAIRS
from alignkd.vlm.data.entries.keys import _IMAGE_KEYS, _MEANINGS, _PAIR_MEANINGS, LOSS_KEYS, SYSTEM_KEYS
from alignkd.vlm.data.formats.entry_file import UnusableEntry
from alignkd.vlm.data.formats.parquet import reading
from alignkd.vlm.data.formats.parquet.columns import is_read
from alignkd.vlm.data.formats.parquet.rows import ParquetEntries
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError

TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.large_string()), ("weight", pa.int8())]))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.dictionary(pa.int32(), pa.string())),
        ("images", pa.list_(IMAGE)),
        ("image", pa.large_binary()),
        ("conversations", TURNS),
        ("loss_weight", pa.float64()),
    ]
)
NULL = st.none()
TEXTS = st.text(max_size=5)
ROWS = st.fixed_dictionaries(
    {
        "id": NULL | st.sampled_from(["a", "b", "é"]),
        "images": NULL
        | st.lists(st.fixed_dictionaries({"bytes": NULL | st.binary(max_size=9), "path": NULL | TEXTS}), max_size=3),
        "image": NULL | st.binary(max_size=9),
        "conversations": NULL
        | st.lists(
            st.fixed_dictionaries({"from": TEXTS, "value": NULL | TEXTS, "weight": NULL | st.integers(0, 1)}),
            max_size=3,
        ),
        "loss_weight": NULL | st.floats(allow_nan=False),
    }
)


@pytest.fixture(autouse=True)
def fresh_batches() -> Iterator[None]:
    reading._start_anew()
    yield
    reading._start_anew()


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return list(map(without_nulls, value)) if isinstance(value, list) else value


@settings(max_examples=60)
@given(
    rows=st.lists(ROWS, max_size=12),
    group=st.integers(1, 13),
    batch_bytes=st.sampled_from([1, 200, 1 << 20]),
    order=st.randoms(use_true_random=False),
    dictionary=st.booleans(),
)
def test_any_table_is_read_as_it_was_written(
    rows: list[dict[str, Any]], group: int, batch_bytes: int, order: Any, dictionary: bool
) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BATCH_BYTES", batch_bytes)
        path = Path(folder) / "data.parquet"
        pq.write_table(table, path, row_group_size=group, use_dictionary=dictionary)
        entries = ParquetEntries(path)
        expected = [without_nulls(row) for row in table.to_pylist()]
        assert [entries[number] for number in range(len(entries))] == expected
        assert sum(entries.block_sizes) == len(entries) == len(rows)
        numbers = list(range(len(rows))) * 2
        order.shuffle(numbers)
        assert [entries[number] for number in numbers] == [expected[number] for number in numbers]


def conversations(count: int) -> list[Any]:
    return [[{"from": "human", "value": f"question {number}"}] for number in range(count)]


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_memory_and_reads_are_bounded_in_a_row_group_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, size = 96, 1 << 20
    picture = np.random.default_rng(0).bytes(size)
    images = [picture[number:] + picture[:number] for number in range(count)]
    path = tmp_path / "data.parquet"
    # a page is the least that can be decoded
    table = pa.table({"image": images, "conversations": conversations(count)})
    pq.write_table(table, path, compression="none", write_batch_size=1)
    digests = [hashlib.sha256(image).digest() for image in images]
    del images, table
    decoded = []
    real = reading._Batches.keep
    monkeypatch.setattr(reading._Batches, "keep", lambda *given: (decoded.append(len(given[2].rows)), real(*given)))
    monkeypatch.setattr(reading, "CACHE_BYTES", 16 << 20)
    monkeypatch.setattr(reading, "BATCH_BYTES", 4 << 20)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        entries = ParquetEntries(path)
        assert entries.block_sizes == (count,) and entries.holds_images
        assert [hashlib.sha256(entries[number]["image"]).digest() for number in range(count)] == digests
        reading._start_anew()
    finally:
        pa.set_memory_pool(before)
    assert sum(decoded) == count and max(decoded) <= 4  # each row once, a few at a time
    assert pool.max_memory() < 48 << 20 < path.stat().st_size


def test_few_files_are_open_however_many_are_read(tmp_path: Path) -> None:
    files = [
        ParquetEntries(write(tmp_path / f"{number}.parquet", conversations=conversations(2))) for number in range(12)
    ]
    for number in (0, 1):
        assert all(entries[number]["conversations"] for entries in files)
    assert len(reading._batches.cursors) <= reading.MAX_CURSORS
    cached = sum(batch.num_bytes for batch in reading._batches.decoded.values())
    assert cached == reading._batches.num_bytes


def test_several_threads_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH_BYTES", 1)  # a batch per row
    monkeypatch.setattr(reading, "MAX_CACHED", 2)
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"conversations": conversations(60)}), path, row_group_size=20)
    entries = ParquetEntries(path)
    found: dict[int, Any] = {}

    def read(start: int) -> None:
        for number in range(start, 60, 4):
            found[number] = entries[number]["conversations"]

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(60)] == conversations(60)


def test_columns_of_no_conversation_are_not_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.parquet",
        id=["a", "b"],
        embedding=[[0.5] * 4] * 2,
        conversations=conversations(2),
        source=["x", "y"],
        imagePaths=["a.png", None],
    )
    entries = ParquetEntries(path)
    assert entries[0] == {"id": "a", "conversations": conversations(1)[0], "imagePaths": "a.png"}
    assert entries.not_read == {"embedding": 2, "source": 2}
    assert entries.where(1) == "row 1 (row 1 of row group 0)"


@pytest.mark.parametrize("column", ["jpg", "figure", "view"])
def test_a_picture_under_another_name_is_not_left_out(tmp_path: Path, column: str) -> None:
    """Text without its picture would be trained on; beside an image, the column is one that is not read."""
    content = b"\xff\xd8\xff" + bytes(20)
    held = pa.array([{"bytes": content, "path": None}, None], IMAGE)
    path = write(tmp_path / "data.parquet", question=["what?", "why?"], answer=["a cat", "so"], **{column: held})
    first, second = open_data(DataSet(path=path))
    assert first.problem == f"key '{column}' is not read; in other programs it is an image; call it 'image'"
    assert second.problem is None and not second.images
    entries = ParquetEntries(
        write(tmp_path / "both.parquet", question=["what?"], answer=["a cat"], image=held[:1], view=held[:1])
    )
    assert entries.not_read == {"view": 1} and "view" not in entries[0]
    row = write(tmp_path / "two.parquet", question=["what?"], answer=["a cat"], image=held[:1], jpg=held[:1])
    assert open_data(DataSet(path=row))[0].problem is None


def test_every_key_that_decides_what_a_sample_is_is_read() -> None:
    keys = {"id", *LISTS, *CAPTIONS, *sum(PAIRS, ()), *LOSS_KEYS, *SYSTEM_KEYS}
    keys |= {*_IMAGE_KEYS, *_MEANINGS, *_PAIR_MEANINGS, "image_1", "fileName", "file_name"}
    assert {key for key in keys if not is_read(key)} == set()


def test_a_table_without_a_conversation_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", image=["a"], label=[1])
    with pytest.raises(InputError, match=r"data.parquet: no column with a conversation among 'image', 'label'; exp"):
        ParquetEntries(path)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (pa.array([[{"bytes": b"x", "path": None}]], pa.list_(IMAGE)), True),
        (pa.array([[{"bytes": None, "path": "a.png"}]], pa.list_(IMAGE)), False),
        (pa.array([{"bytes": b"x"}], pa.struct([("bytes", pa.binary())])), True),
        (pa.array([b"x"], pa.large_binary()), True),
        (pa.array([None], pa.binary()), False),
        (pa.array(["a.png"]), False),
    ],
)
def test_images_are_held_where_a_column_has_bytes(tmp_path: Path, images: Any, expected: bool) -> None:
    path = write(tmp_path / "data.parquet", images=images, conversations=conversations(1))
    assert ParquetEntries(path).holds_images is expected


def test_a_text_that_is_not_utf8_makes_its_row_unusable(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    entries = ParquetEntries(write(tmp_path / "data.parquet", question=texts, answer=["b", "c"]))
    assert entries[0] == {"question": "a", "answer": "b"}
    assert isinstance(entries[1], UnusableEntry) and "row 1 of data.parquet cannot be read" in entries[1].problem


@pytest.mark.parametrize(("keep", "at"), [(0.5, None), (0.999, None), (1.0, 0.3)])
def test_a_damaged_file_is_one_line(tmp_path: Path, keep: float, at: float | None) -> None:
    rows = [[{"from": "human", "value": hashlib.sha256(bytes([number])).hexdigest() * 9}] for number in range(200)]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"conversations": rows}), path, row_group_size=50)
    data = bytearray(path.read_bytes())
    data = data[: int(len(data) * keep)]
    if at is not None:
        start = int(len(data) * at)
        data[start : start + 900] = bytes(900)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data.parquet: damaged or truncated Parquet.*; fetch or write .*") as caught:
        entries = ParquetEntries(path)
        assert len(entries) == 200
        for number in range(200):
            entries[number]
    assert "\n" not in str(caught.value)
