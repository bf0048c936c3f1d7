"""Descriptions made from one that zarr-python wrote are the ones that it would have written."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from alignkd.storage.layouts.zarr.chunk_file import METADATA
from alignkd.storage.layouts.zarr.metadata import write_metadata
from alignkd.storage.schema.columns.shard import Column
from alignkd.storage.schema.commit_record import ArrayLayout

# no datum, so that a lost chunk shows
FILL_VALUES = {"<f2": np.nan, "<f4": np.nan, "<i4": -1, "<u2": 65535, "|u1": 0, "<i8": -1, "|i1": -128}


@settings(max_examples=25)
@given(
    rows=st.integers(0, 3000),
    row_shape=st.lists(st.integers(1, 300), max_size=2),
    dtype=st.sampled_from(["<f2", "<f4", "<i4", "<u2", "|u1", "<i8", "|i1"]),
    labels=st.lists(st.text(max_size=5), max_size=3),
)
def test_as_zarr_writes_them(
    tmp_path_factory: pytest.TempPathFactory, rows: int, row_shape: list[int], dtype: str, labels: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("zarr")
    column = Column("values", "token", np.dtype(dtype), tuple(row_shape), labels=tuple(labels))
    layout = ArrayLayout((rows, *column.row_shape), column.chunk_shape)
    described = {"values": {"codec_id": "é", "bound": 1e-9, "of": None}}
    (folder / "values").mkdir()
    write_metadata(folder, [column], {"values": layout}, {"values": bytearray(b"abcd")}, described)
    chunk = layout.chunk[0]
    zarr.create_array(
        folder / "theirs",
        shape=layout.shape,
        dtype=column.dtype,
        chunks=(max(1, -(-rows // chunk)) * chunk, *row_shape),
        serializer=ShardingCodec(
            chunk_shape=layout.chunk,
            codecs=[BytesCodec(), Crc32cCodec()],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        ),
        filters=None,
        compressors=None,
        fill_value=FILL_VALUES[dtype],
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes=({"labels": labels} if labels else {}) | {"target": described["values"]},
    )
    assert (folder / "values" / METADATA).read_bytes() == (folder / "theirs" / METADATA).read_bytes()
