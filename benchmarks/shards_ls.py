"""Time of `alignkd shards ls` on a store of many shards, against simply reading the same commit records.

    python benchmarks/shards_ls.py [--shards 10000] [--rounds 5]

The commit records are copies of that of one written zarr shard, with other numbers: listing reads no other file.
Everything is in the page cache. Other work on the machine increases wall time, but not processor time.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from cases.measuring import machine
from cases.synthetic_records import Records

from alignkd.storage import open_writer
from alignkd.storage.schema.commit_record import commit_path, shard_name
from alignkd.storage.schema.sealed_json import seal, unseal

LIST = (sys.executable, "-m", "alignkd.pipeline.cli", "shards", "ls")
Seconds = tuple[float, float]


@click.command()
@click.option("--shards", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of rounds; the medians are printed.",
)
def main(shards: int, rounds: int) -> None:
    """Measure the time of listing a store of many shards.

    Example: python benchmarks/shards_ls.py --shards 1000
    """
    print(f"{' '.join(['python benchmarks/shards_ls.py', *sys.argv[1:]])}\n\n{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="alignkd-ls-") as folder:
        store = Path(folder) / "store"
        size = make_store(store, shards)
        cases: dict[str, Callable[[], object]] = {
            "read every commit record, nothing more": lambda: run(sys.executable, "-c", _READ, str(store / "commits")),
            "alignkd --version": lambda: run(*LIST[:-2], "--version"),
            "alignkd shards ls": lambda: run(*LIST, str(store)),
            "alignkd shards ls --json": lambda: run(*LIST, str(store), "--json"),
        }
        found: dict[str, list[Seconds]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, work in cases.items():
                found[name].append(timed(work))
    print(f"{shards} zarr shards, commit records of {size / shards / 1e3:.1f} kB\n")
    least = statistics.median(wall for wall, _ in next(iter(found.values())))
    print(f"{'case':40} {'wall s':>7} {'processor s':>12} {'wall, ratio':>12}")
    for name, seconds in found.items():
        wall, processor = map(statistics.median, zip(*seconds, strict=True))
        print(f"{name:40} {wall:7.2f} {processor:12.2f} {wall / least:12.1f}")


def make_store(store: Path, shards: int) -> int:
    """Make a store in which only the first shard has files; return the bytes of its commit records."""
    records = Records("u8", vision_all=False)
    writer = open_writer(store, records.manifest(num_samples=shards, shard_size=1, backend="zarr"))
    with writer.open_shard(0) as sink:
        sink.append(records[int(writer.planned_samples(0)[0])])
        sink.commit()
    first, size = unseal(commit_path(store, 0)), 0
    for shard in range(shards):
        numbered = {"shard": shard, "folder": shard_name(shard)}
        size += commit_path(store, shard).write_bytes(seal({**first, **numbered}))
    return size


def run(*command: str) -> None:
    """Run a command and discard its output."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def timed(work: Callable[[], object]) -> Seconds:
    """Wall and processor seconds of work in other processes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


_READ = "import os, sys; [open(entry.path, 'rb').read() for entry in os.scandir(sys.argv[1])]"


if __name__ == "__main__":
    main()
