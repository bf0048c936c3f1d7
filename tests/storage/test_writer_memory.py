"""A shard is written with the memory of a few chunks, however large it gets."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

from storage import Codecs, LogitsCodec, Manifest, Record, Shapes, StoreWriter
from storage.columns import columns_of


def test_memory_does_not_grow_with_the_shard(
    tmp_path: Path, make_manifest: Callable[..., Manifest], make_record: Callable[..., Record]
) -> None:
    codecs = Codecs(logits=LogitsCodec(kind="full", dtype="float16"))
    shapes = Shapes(num_heads=8, hidden_size=256, vision_tokens=64, vocab_size=4000)
    manifest = make_manifest(shapes=shapes, codecs=codecs, num_samples=60, shard_size=60)
    one_chunk_of_each = sum(c.chunk_shape[0] * c.row_bytes for c in columns_of(manifest))
    writer = StoreWriter(tmp_path / "store", manifest)
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
    assert commit.totals.bytes > 5_000_000 > 3 * one_chunk_of_each
    assert largest < one_chunk_of_each
