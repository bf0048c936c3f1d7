"""Reading and writing a store, against a raw memory map of the same bytes and the layouts' stock readers."""

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader, open_writer
from alignkd.storage.schema.columns.shard import OFFSETS, columns_of
from alignkd.storage.schema.manifest import Manifest
from cases.measuring import Case, timed
from cases.synthetic_records import RawFile, Records, arrays_of, num_bytes

BACKENDS = ("zarr", "webdataset")
STOCK_RECORDS = 64  # enough for zarr-python, which is slow


def write_store(path: Path, manifest: Manifest, records: Records) -> int:
    """Write a whole store and return the bytes of its records' arrays."""
    size, writer = 0, open_writer(path, manifest)
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard):
                record = records[int(index)]
                size += num_bytes(record)
                sink.append(record)
            sink.commit()
    return size


def write_cases(folder: Path, manifests: dict[str, Manifest], records: Records, order: NDArray[np.int64]) -> list[Case]:
    """Writing whole stores, with fsync and read-back, against filling a memory map and fsync."""
    path = folder / "written"

    size = sum(num_bytes(records[int(index)]) for index in order)

    def raw() -> int:
        target = np.memmap(path, np.uint8, mode="w+", shape=(size,))
        end = 0
        for index in order.tolist():
            for _, array in arrays_of(records[index]):
                target[end : end + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                end += array.nbytes
        target.flush()
        descriptor = os.open(path, os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
        return end

    def cleared(work: Any) -> Any:
        def run() -> tuple[int, float]:
            found = timed(work, time.perf_counter)()
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return found

        return run

    name = "write: memory map, fsync"
    stores = [
        Case(
            f"write: {backend}, checksums, fsync, read back",
            cleared(lambda manifest=manifest: write_store(path, manifest, records)),
            name,
            0.4,
        )
        for backend, manifest in manifests.items()
    ]
    return [Case(name, cleared(raw)), *stores]


def read_cases(stores: dict[str, Path], raw: RawFile) -> list[Case]:
    """Copying every record once, shuffled and in order.

    The reference is a memory map that is opened for the epoch, as in a program that does not keep a store in memory:
    each page is mapped at its first use. A map with all pages already mapped, which takes as much resident memory as
    the store, is measured too.

    All files are in the page cache and all work is done in this process, so nothing waits. Processor time is measured,
    because other work on the machine does not increase it.
    """
    in_order = np.arange(len(raw))
    shuffled = np.random.default_rng(1).permutation(len(raw))
    limits = {name: f"read: memory map, {name}" for name in ("shuffled", "in order")}
    mapped = raw.opened()
    cases = [
        Case(limits["shuffled"], _alone(lambda: _copy_all(raw, raw.opened(), shuffled))),
        Case(limits["in order"], _alone(lambda: _copy_all(raw, raw.opened(), in_order))),
        Case(
            "read: memory map, all of it resident, shuffled",
            _alone(lambda: _copy_all(raw, mapped, shuffled)),
            limits["shuffled"],
        ),
    ]
    for backend, path in stores.items():
        reader = StoreReader(path)
        assert sum(num_bytes(reader[position]) for position in range(len(reader))) == raw.starts[-1]
        for against, order in (("shuffled", shuffled), ("in order", in_order)):
            read = _alone(_read_all(reader, order, raw))
            cases.append(Case(f"read: {backend}, every checksum, {against}", read, limits[against], 0.3))
    zarr_store, tar_store = (stores[backend] for backend in BACKENDS)
    return [
        *cases,
        Case(
            "read: stock zarr-python, shuffled",
            _alone(_zarr_python(zarr_store, shuffled)),
            limits["shuffled"],
        ),
        Case("read: stock webdataset, shuffle buffer of 64", _alone(_webdataset(tar_store)), limits["shuffled"]),
    ]


def _alone(work: Callable[[], int]) -> Callable[[], tuple[int, float]]:
    return timed(work, time.process_time)


def _copy_all(raw: RawFile, opened: NDArray[np.uint8], order: NDArray[np.int64]) -> int:
    return sum(np.array(opened[raw.starts[position] : raw.starts[position + 1]]).nbytes for position in order)


def _read_all(reader: StoreReader, order: NDArray[np.int64], raw: RawFile) -> Any:
    def read() -> int:
        for position in order:
            reader[position]
        return int(raw.starts[-1])

    return read


def _zarr_python(store: Path, order: NDArray[np.int64]) -> Any:
    """The same rows, read by zarr-python's own slicing, which also verifies crc32c."""
    import zarr

    reader = StoreReader(store)
    columns = [column for column in columns_of(reader.manifest) if column.group not in ("record", "id", "text")]
    groups = [zarr.open_group(path, mode="r") for path in sorted((store / "shards").iterdir())]
    tables: Any = [group[OFFSETS][...] for group in groups]
    labels = next(column.labels for column in columns_of(reader.manifest) if column.name == OFFSETS)
    ends = np.cumsum([len(table) - 1 for table in tables])

    def read() -> int:
        size = 0
        for position in order[:STOCK_RECORDS]:
            shard = int(np.searchsorted(ends, position, side="right"))
            row = position - (ends[shard - 1] if shard else 0)
            begin, end = (dict(zip(labels, tables[shard][row + at].tolist(), strict=True)) for at in (0, 1))
            for column in columns:
                found: Any = groups[shard][column.name][begin[column.group] : end[column.group]]
                size += found.nbytes
        return size

    return read


def _webdataset(store: Path) -> Any:
    """The tars read by webdataset's own pipeline, arrays by numpy."""
    import webdataset

    tars = sorted(str(path) for path in store.glob("shards/*/*.tar"))

    def read() -> int:
        size = 0
        for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).shuffle(64):
            for name, data in sample.items():
                if name.endswith("npy"):
                    size += np.load(io.BytesIO(data), allow_pickle=False).nbytes
        return size

    return read
