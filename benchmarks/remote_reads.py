"""How fast ranges of objects are read from an S3 service, against botocore's own client in the same run.

    python benchmarks/remote_reads.py [--reads 500] [--rounds 5] [--markdown]

The service is a minimal one in a process of its own on this machine, so this is the cost of the client, not of a
network. 16 threads read at the same time, as `ALIGNKD_REMOTE_CONNECTIONS` has it.
"""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import click
from cases.measuring import Case, machine, measure, table, timed

from alignkd.storage.remote.objects import read_body
from alignkd.storage.remote.s3.client import S3Client
from alignkd.storage.remote.s3.store import S3Store
from alignkd.storage.remote.settings import RemoteSettings

SIZES = {"100 kB": 100_000, "4 MiB": 4 << 20}
BUCKET, PREFIX, KEY = "bucket", "some/store", "shards/00000000/attention/c/0/0/0"
Work = Callable[[int], object]


@click.command()
@click.option("--reads", type=click.IntRange(min=16), default=500, show_default=True, help="Of 100 kB, per round.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Medians are of these.")
@click.option("--markdown", is_flag=True, help="Tables for docs/benchmarks.md.")
def main(reads: int, rounds: int, markdown: bool) -> None:
    """Ratios of our reads to those of botocore's client.

    Example: python benchmarks/remote_reads.py --reads 200
    """
    print(f"{' '.join(['python benchmarks/remote_reads.py', *sys.argv[1:]])}\n\n{machine()}\n", flush=True)
    with service():
        settings = RemoteSettings(timeout_seconds=600)
        store, client = S3Store(f"s3://{BUCKET}/{PREFIX}", settings), S3Client(BUCKET, settings)
        for name, size in SIZES.items():
            count = reads if size < 1 << 20 else max(16, reads // 10)
            ways: dict[str, Work] = {
                "botocore's client": lambda size: through_client(client, size),
                "alignkd": lambda size: store.get_range(KEY, 0, size),
            }
            for title, clock in (("wall time", time.perf_counter), ("processor time", time.process_time)):
                cases = cases_of(ways, count, size, clock)
                print(table(f"{count} reads of {name}, {title}", measure(cases, rounds), markdown=markdown), flush=True)


def cases_of(ways: dict[str, Work], count: int, size: int, clock: Callable[[], float]) -> list[Case]:
    """One case for each way of reading; ratios are to the first."""
    first = next(iter(ways))
    return [
        Case(name, timed(reading(work, count, size), clock), None if name == first else first)
        for name, work in ways.items()
    ]


def reading(work: Work, count: int, size: int) -> Callable[[], int]:
    """Reads by 16 threads; gives the bytes read."""

    def run() -> int:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, [size] * count))
        return count * size

    return run


def through_client(client: S3Client, size: int) -> bytes:
    """The same read by the client's method; its body is read in the same way."""
    answer = client.call("get_object", Bucket=BUCKET, Key=f"{PREFIX}/{KEY}", Range=f"bytes=0-{size - 1}")
    return read_body(answer["Body"].read, size, time.monotonic() + 600)


@contextmanager
def service() -> Iterator[None]:
    """The service in another process; AWS_* variables lead to it and to nothing else."""
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{process.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield
    finally:
        process.kill()
        process.wait()


def serve() -> None:
    """Answer ranged reads of any key for ever; prints the port first."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listening.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=answer_all, args=(listening.accept()[0],), daemon=True).start()


def answer_all(connection: socket.socket) -> None:
    """The requests of one connection."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    content, total, waiting = bytes(max(SIZES.values())), max(SIZES.values()), b""
    while True:
        while b"\r\n\r\n" not in waiting:
            if not (received := connection.recv(1 << 16)):
                return
            waiting += received
        request, waiting = waiting.split(b"\r\n\r\n", 1)
        found = re.search(rb"(?i)\r\nrange: *bytes=(\d+)-(\d+)", request)
        assert found is not None
        first, last = map(int, found.groups())
        answer = (
            f"HTTP/1.1 206 Partial Content\r\nContent-Length: {last + 1 - first}\r\n"
            f"Content-Range: bytes {first}-{last}/{total}\r\nContent-Type: binary/octet-stream\r\n\r\n"
        )
        connection.sendall(answer.encode() + content[first : last + 1])


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
