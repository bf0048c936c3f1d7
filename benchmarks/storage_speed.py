"""Speed of reading and writing stores and of handing over batches, as ratios measured in one run.

    python benchmarks/storage_speed.py [--megabytes 200] [--rounds 5] [--markdown]

Ratios are to a raw memory map of the same bytes (reading, writing) or to a stock DataLoader (hand-off). Everything is
in the page cache, so the ratios show the cost of the software, not of the disk; writing includes the disk. The folder
takes about four times `--megabytes`.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from cases.handoff_cases import handoff_cases
from cases.measuring import Case, machine, measure, table
from cases.store_cases import BACKENDS, read_cases, write_cases, write_store
from cases.synthetic_records import ATTENTION, RawFile, Records, num_bytes

from alignkd.storage import StoreReader

SHARDS = 4  # for reading; writing makes one shard of the recommended size
TABLES = ("reading", "hand-off", "writing")


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to; by default a temporary one."
)
@click.option(
    "--megabytes", type=click.IntRange(min=20), default=200, show_default=True, help="Size of the records of a store."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of rounds; the medians are printed.",
)
@click.option("--attention", type=click.Choice(list(ATTENTION)), multiple=True, default=list(ATTENTION))
@click.option(
    "--only", type=click.Choice(TABLES), multiple=True, default=TABLES, help="Tables to make; by default all."
)
@click.option("--vision-all", is_flag=True, help="Also store the embeddings of all vision tokens.")
@click.option("--markdown", is_flag=True, help="Tables for docs/benchmarks.md.")
def main(
    folder: Path | None,
    megabytes: int,
    rounds: int,
    attention: tuple[str, ...],
    only: tuple[str, ...],
    vision_all: bool,
    markdown: bool,
) -> None:
    """Compare reading, writing and hand-off with the simplest way of moving the same bytes.

    Example: python benchmarks/storage_speed.py --megabytes 100 --rounds 3
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    print(f"{' '.join(['python benchmarks/storage_speed.py', *sys.argv[1:]])}\n\n{machine()}\n", flush=True)
    for kind in attention:
        with tempfile.TemporaryDirectory(dir=folder, prefix="alignkd-speed-") as place:
            cases = cases_of(Path(place), Records(kind, vision_all=vision_all), megabytes)
            for name in only:
                title, make = cases[name]
                print(table(f"{title}, attention {kind}", measure(make(), rounds), markdown=markdown), flush=True)
    print(f"{time.monotonic() - started:.0f} s in all")


def cases_of(folder: Path, records: Records, megabytes: int) -> dict[str, tuple[str, Callable[[], list[Case]]]]:
    """Write stores of these records in both layouts; table -> its title, and a function that makes its cases."""
    some = [num_bytes(records[index]) for index in range(32)]
    num_samples = megabytes * 1_000_000 * len(some) // sum(some)
    manifests, one_shard = (
        {
            backend: records.manifest(num_samples=num_samples, shard_size=-(-num_samples // shards), backend=backend)
            for backend in BACKENDS
        }
        for shards in (SHARDS, 1)
    )
    stores = {backend: folder / backend for backend in BACKENDS}
    for backend, path in stores.items():
        write_store(path, manifests[backend], records)
    order = StoreReader(stores["zarr"]).dataset_index
    raw = RawFile(folder / "raw", records, order)
    size = f"{num_samples} records of {raw.starts[-1] / num_samples / 1e3:.0f} kB"
    return {
        "reading": (f"Reading, {size}", lambda: read_cases(stores, raw)),
        "hand-off": (f"Hand-off, {size}", lambda: handoff_cases(raw, megabytes // 2)),
        "writing": (f"Writing, {size}", lambda: write_cases(folder, one_shard, records, order)),
    }


if __name__ == "__main__":
    main()
