"""Reading a store takes the memory of a few records and of the open shards' tables, however large the store is."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, StoreReader

MIB = 1 << 20


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_memory_does_not_grow_with_what_is_read(
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    make_record: Callable[..., Record],
    write_store: Callable[..., Path],
    backend: str,
) -> None:
    shapes = Shapes(num_heads=2, hidden_size=2048, vision_tokens=256, vocab_size=40)
    codecs = Codecs(attention="none", vision_top="none", logits=LogitsCodec(kind="none"))
    manifest = make_manifest(backend=backend, shapes=shapes, codecs=codecs, num_samples=96, shard_size=16)
    some = make_record(manifest, 0)

    def record_of(index: int) -> Record:
        sha256 = f"{index:064x}"
        return Record(**{**some.__dict__, "index": index, "key": sha256, "image_sha256": (sha256,)})

    store = write_store(tmp_path / "store", manifest, record_of=record_of)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert size > 95 * MIB
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if grown_by_reading(store) < 40 * MIB else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def grown_by_reading(store: Path) -> int:
    """Bytes by which the resident memory grew at its peak, all records read twice in shuffled order."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    reader = StoreReader(store)
    for place in np.random.default_rng(0).permutation(2 * len(reader)) % len(reader):
        reader[int(place)]
    assert len(reader.keys) == len(reader.ids) == len(reader.num_tokens)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - before
