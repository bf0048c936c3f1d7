"""Two machines, which are namespaces of Linux: what one of them does not survive, and what ends both in one line.

`benchmarks/two_nodes.py` does the same with the launchers.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes.cluster import Cluster, why_not
from processes_of_two import ended, run_two

from alignkd.student_train.job import TrainJob

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
PORT = "29500"  # the network is ours alone


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("needs root: the processes of these tests mount a /proc of their own")
    if (problem := why_not()) is not None:
        pytest.skip(f"no namespaces on this machine: {problem}")
    with Cluster("node-a", "node-b") as made:
        yield made


@pytest.fixture
def start_two(start_child: Any) -> Callable[..., list[Any]]:
    """start_two(cluster, job, the job of the second machine, blow to its process): a rank on each machine."""

    def start(cluster: Cluster, job: TrainJob, other: TrainJob | None = None, blow: Any = None) -> list[Any]:
        place = {"MASTER_ADDR": "node-a", "MASTER_PORT": PORT, "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        jobs, blows = (job, other or job), (None, blow)
        return [
            start_child(jobs[rank], blows[rank], node=node, RANK=str(rank), **place)
            for rank, node in enumerate(cluster.nodes)
        ]

    return start


def last_lines(children: list[Any], code: int = 1) -> list[str]:
    """The last line of each process; all of them end with this exit code."""
    return [ended(child, code).splitlines()[-1] for child in children]


def test_a_machine_that_is_lost_and_comes_back(
    cluster: Cluster,
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    start_two: Callable[..., list[Any]],
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """Its process is killed in step 4; both resume from step 2, and the run is the unbroken one of one machine."""
    settings: dict[str, Any] = {"steps": 5, "micro_batch": 1, "global_batch": 4, "checkpoint_every": 2}
    unbroken = make_job(many_store, output=tmp_path / "unbroken", **settings)
    run_two(start_child, unbroken)
    job = make_job(many_store, output=tmp_path / "broken", **settings)
    first, second = start_two(cluster, job, blow=("trainer", "_optimiser_step", 4, signal.SIGKILL))
    ended(second, -signal.SIGKILL)
    (line,) = last_lines([first])
    assert line.startswith("rank 0 on host node-a: an exchange with the other processes failed (")
    assert line.endswith("run the same command again on all machines to resume from the last checkpoint")
    for child in start_two(cluster, job):
        ended(child)
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (job.train.output / name).read_bytes() == (unbroken.train.output / name).read_bytes()


def test_a_link_that_is_cut_ends_both(
    cluster: Cluster, many_store: Path, make_job: MakeJob, start_two: Callable[..., list[Any]]
) -> None:
    """No process is told by TCP: each ends by itself, by whichever of two equal limits is noticed first."""
    settings: dict[str, Any] = {"steps": 100_000, "micro_batch": 1, "global_batch": 2, "checkpoint_every": 2}
    job = make_job(many_store, wait_minutes=0.2, **settings)
    children = start_two(cluster, job)
    while not (job.train.output / "checkpoints" / "step-00000002").exists():
        assert all(child.poll() is None for child in children), [child.errors() for child in children]
        time.sleep(0.05)
    cluster.cut(cluster.nodes[1])
    try:
        lines = last_lines(children)
    finally:
        cluster.mend(cluster.nodes[1])
    for line, host in zip(lines, ("a", "b"), strict=True):
        silent, late = "ends because of .* has seen no sign of life for 12 s", "an exchange .* failed .Timed out"
        pattern = rf"rank \d on host node-{host}:? ({silent}|{late})"
        assert re.match(pattern, line), line


def test_an_output_that_is_not_shared_is_refused(
    cluster: Cluster, many_store: Path, make_job: MakeJob, start_two: Callable[..., list[Any]]
) -> None:
    output = cluster.nodes[0].local / "out"
    children = start_two(cluster, make_job(many_store, output=output, steps=2, micro_batch=1, global_batch=2))
    for line in last_lines(children):
        assert line == (
            f"train.output {output}: rank 1 on host node-b does not see there what rank 0 on host node-a has written "
            f"to {output}; give all of them the same folder, on a file system that all machines share"
        )


def test_what_one_machine_lacks_is_named_on_the_other(
    cluster: Cluster, many_store: Path, make_job: MakeJob, start_two: Callable[..., list[Any]], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 2, "micro_batch": 1, "global_batch": 2}
    job, other = (make_job(store, **settings) for store in (many_store, tmp_path / "absent"))
    first, second = last_lines(start_two(cluster, job, other))
    assert f"{tmp_path / 'absent'}/manifest.json: No such file" in second
    assert first == f"rank 0 on host node-a ends because of rank 1 on host node-b: {second}"


def test_other_settings_on_one_machine_are_refused(
    cluster: Cluster, many_store: Path, make_job: MakeJob, start_two: Callable[..., list[Any]]
) -> None:
    """Times of checkpoints decide nothing that is learnt, but every process takes part in each."""
    settings: dict[str, Any] = {"steps": 2, "micro_batch": 1, "global_batch": 2}
    job, other = (make_job(many_store, checkpoint_every=steps, **settings) for steps in (1, 2))
    for line in last_lines(start_two(cluster, job, other)):
        assert line == (
            "train.checkpoint_every is 1 for rank 0 on host node-a and 2 for rank 1 on host node-b; give every process "
            "the same configuration, stores and versions of packages"
        )


def test_a_name_that_leads_to_loopback_is_refused(
    cluster: Cluster, many_store: Path, make_job: MakeJob, start_two: Callable[..., list[Any]]
) -> None:
    """gloo would offer 127.0.1.1 to the other machine, and wait for it."""
    job = make_job(many_store, steps=2, micro_batch=1, global_batch=2)
    with Cluster("node-a", "node-b", own_name_is_loopback=True) as confused:
        for line, host in zip(last_lines(start_two(confused, job)), ("node-a", "node-b"), strict=True):
            assert f"host {host}: its own name leads to 127.0.1.1" in line or "ends because of" in line
            assert "set GLOO_SOCKET_IFNAME there to the interface that connects the machines (one of eth0)" in line
