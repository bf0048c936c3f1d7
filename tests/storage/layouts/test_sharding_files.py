"""Our sharding files against zarr-python: whatever is appended in whatever pieces, both read the same array."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import CorruptStoreError
from alignkd.storage.files.append import PIECE_BYTES
from alignkd.storage.files.local import LocalFile, LocalFiles
from alignkd.storage.layouts.protocol import WrittenShard
from alignkd.storage.layouts.zarr.backend import ZarrSink
from alignkd.storage.layouts.zarr.chunk_file import data_file
from alignkd.storage.layouts.zarr.chunk_reader import ShardingFileReader
from alignkd.storage.layouts.zarr.chunk_writer import ShardingFileWriter
from alignkd.storage.schema.columns.shard import COLUMN_BLOCK, Column
from alignkd.storage.schema.commit_record import ArrayLayout

COLUMNS = (
    Column("numbers", "g", np.dtype("<i4")),
    Column("bytes", "g", np.dtype("u1")),
    Column("wide", "g", np.dtype("<f2"), (3, 5000)),
    Column("ragged", "g", np.dtype("<f4"), (2, COLUMN_BLOCK), width_field="attention_columns"),
)


def write(folder: Path, column: Column, pieces: list[np.ndarray]) -> tuple[WrittenShard, ShardingFileReader]:
    folder.mkdir(parents=True)
    sink = ZarrSink(folder, [column])
    for piece in pieces:
        sink.append({column.name: piece})
    written = sink.close()
    return written, ShardingFileReader(open_file(folder / data_file(column)), column.dtype, written.arrays[column.name])


def open_file(path: Path) -> LocalFile | None:
    return LocalFiles(path.parent).open(path.name) if path.exists() else None


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
@settings(max_examples=20)
@given(data=st.data())
def test_both_readers_give_back_what_was_appended(
    column: Column, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    per_chunk = column.chunk_shape[0]
    counts = data.draw(st.lists(st.integers(0, 2 * per_chunk + 1), max_size=5))
    pieces = [piece_of(column, count, rng) for count in counts]
    folder = tmp_path_factory.mktemp("shard") / "group"
    written, source = write(folder, column, pieces)
    width = max([p.shape[-1] for p in pieces if len(p)], default=0) if column.variable_width else None
    expected = joined(column, pieces, width)
    assert zarr.open_group(folder, mode="r")[column.name][...].tobytes() == expected.tobytes()
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    found = source.read(start, stop)
    assert (found.dtype, found.shape) == (expected.dtype, expected[start:stop].shape)
    assert found.tobytes() == expected[start:stop].tobytes()
    assert {file.path: file.num_bytes for file in written.files} == {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def piece_of(column: Column, count: int, rng: np.random.Generator) -> np.ndarray:
    shape = (count, *column.row_shape)
    if column.variable_width:
        shape = (*shape[:-1], int(rng.integers(0, 3 * COLUMN_BLOCK)))
    return rng.integers(0, 100, shape).astype(column.dtype)


def joined(column: Column, pieces: list[np.ndarray], width: int | None) -> np.ndarray:
    if width is not None:
        pieces = [np.pad(p, [(0, 0), (0, 0), (0, width - p.shape[-1])]) for p in pieces if len(p)]
    row_shape = column.row_shape if width is None else (*column.row_shape[:-1], width)
    return np.concatenate([np.empty((0, *row_shape), column.dtype), *pieces])


def test_rows_narrower_than_one_whole_block_are_read_in_their_width(tmp_path: Path) -> None:
    column, rng = COLUMNS[3], np.random.default_rng(0)
    pieces = [rng.random((3, 2, width)).astype("<f4") for width in (COLUMN_BLOCK, 5, COLUMN_BLOCK)]
    _, source = write(tmp_path / "group", column, pieces)
    for number, piece in enumerate(pieces):
        found = source.read(3 * number, 3 * number + 3, piece.shape[-1])
        assert found.shape == piece.shape and found.tobytes() == piece.tobytes()


def test_rows_of_their_own_width_cost_no_padding(tmp_path: Path) -> None:
    """One wide record among narrow ones: only its own chunks are wide, and each record reads its width."""
    column = COLUMNS[3]
    per_chunk = column.chunk_shape[0]
    narrow = np.ones((per_chunk, 2, 10), np.float32)
    wide = np.full((per_chunk, 2, 10 * COLUMN_BLOCK), 2, np.float32)
    written, source = write(tmp_path / "shard", column, [narrow, wide, narrow])
    chunk_bytes = per_chunk * column.row_bytes + 4
    index_bytes = 3 * 10 * 16 + 4
    assert {file.path: file.num_bytes for file in written.files}["ragged/c.0.0.0"] == 12 * chunk_bytes + index_bytes
    assert (source.read(0, per_chunk, 10) == 1).all()
    assert (source.read(per_chunk, per_chunk + 1, 100) == 2).all()
    with pytest.raises(CorruptStoreError, match=r"chunk index: holds 64 columns of rows \d+:\d+, 100 asked for"):
        source.read(per_chunk - 1, per_chunk + 1, 100)


def test_a_writer_holds_one_piece_whatever_it_writes(tmp_path: Path) -> None:
    column = Column("attention", "g", np.dtype("<f2"), (8, 144))
    chunk_bytes = column.chunk_shape[0] * column.row_bytes
    rows = np.ones((200, 8, 144), np.float16)
    writer = ShardingFileWriter(tmp_path / "c", column.dtype, column.chunk_shape)
    writer.append(rows)
    tracemalloc.start()
    for _ in range(40):
        writer.append(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    writer.close()
    assert writer.num_bytes > 40 * rows.nbytes
    assert peak < 2 * (chunk_bytes + PIECE_BYTES) < writer.num_bytes / 10


def damaged_file(tmp_path: Path) -> tuple[Path, ArrayLayout]:
    path = tmp_path / "c.0"
    writer = ShardingFileWriter(path, np.dtype("<i4"), (16,))
    writer.append(np.arange(40, dtype=np.int32))
    return path, writer.close()


def read_all(path: Path, layout: ArrayLayout) -> Any:
    file = LocalFiles(path.parent).open(path.name, "shard 3, array x")
    return ShardingFileReader(file, np.dtype("<i4"), layout).read(0, 40)


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path, layout = damaged_file(tmp_path)
    sound = path.read_bytes()
    assert read_all(path, layout).tolist() == list(range(40))
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
        with pytest.raises(CorruptStoreError, match=r"shard 3, array x, chunk (\d|index): crc32c is"):
            read_all(path, layout)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path, layout = damaged_file(tmp_path)
    sound = path.read_bytes()
    for size in range(len(sound)):
        path.write_bytes(sound[:size])
        with pytest.raises(CorruptStoreError, match="shard 3, array x"):
            read_all(path, layout)


def test_a_file_of_other_chunks_is_refused(tmp_path: Path) -> None:
    """A sound file of the same grid whose chunks have another size is not taken for ours."""
    path, layout = damaged_file(tmp_path)
    other = ArrayLayout(layout.shape, (17,))
    with pytest.raises(CorruptStoreError, match="3 chunks of 72 bytes do not fill 204 bytes"):
        read_all(path, other)


def test_a_missing_file_is_refused_not_read_as_zeros(tmp_path: Path) -> None:
    path, layout = damaged_file(tmp_path)
    path.unlink()
    with pytest.raises(CorruptStoreError, match=r"shard 3, array x: .*No such file or directory; restore"):
        read_all(path, layout)
