"""A shard is written with the memory of a few chunks and pieces, however large it gets."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, open_writer
from alignkd.storage.files.append import PIECE_BYTES
from alignkd.storage.files.background import MAX_WAITING
from alignkd.storage.layouts.zarr.chunk_writer import LARGE_CHUNK_BYTES, SMALL_PIECE_BYTES
from alignkd.storage.schema.columns.shard import columns_of


def test_memory_does_not_grow_with_the_shard(
    tmp_path: Path, make_manifest: Callable[..., Manifest], make_record: Callable[..., Record]
) -> None:
    codecs = Codecs(logits=LogitsCodec(kind="full", dtype="float16"))
    shapes = Shapes(num_heads=8, hidden_size=256, vision_tokens=64, vocab_size=4000)
    manifest = make_manifest(shapes=shapes, codecs=codecs, num_samples=200, shard_size=200)
    columns = columns_of(manifest)
    one_chunk_of_each = sum(c.chunk_shape[0] * c.row_bytes for c in columns)
    large = sum(c.chunk_shape[0] * c.row_bytes >= LARGE_CHUNK_BYTES for c in columns)
    bound = one_chunk_of_each + len(columns) * SMALL_PIECE_BYTES + (large + MAX_WAITING) * PIECE_BYTES
    writer = open_writer(tmp_path / "store", manifest)
    with writer.open_shard(0) as sink:
        largest = 0
        make_record(manifest, 0)  # imports what its checks need
        tracemalloc.start()
        for index in writer.planned_samples(0).tolist():
            sink.append(make_record(manifest, index))
            tracemalloc.reset_peak()
            largest = max(largest, tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        commit = sink.commit()
    assert largest < bound < commit.totals.bytes / 3
