"""What is refused before Ray is asked, and what its messages about dead actors mean."""

import socket
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from click.testing import CliRunner

import alignkd.teacher_dump.cluster.ray_fleet as ray_fleet
from alignkd.pipeline.cli import main
from alignkd.teacher_dump.cluster.ray_fleet import WorkerShape, lost
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.errors import InputError

MakeJob = Callable[..., DumpJob]


def refusal(job: DumpJob, address: str | None = None, **shape: float) -> str:
    with pytest.raises(InputError) as found, ray_fleet.ray_fleet(job, WorkerShape(**shape), address):
        pass
    return str(found.value)


def test_without_ray_the_extra_is_named(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refusal(make_job()) == "--ray needs ray; pip install 'alignkd[ray]'"


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "head:99999", "nonsense"])
def test_an_address_of_another_form_is_refused(address: str, make_job: MakeJob) -> None:
    assert refusal(make_job(), address).startswith(f"--address is '{address}', expected HOST:PORT of a cluster's head")


def test_an_address_where_nothing_answers_is_refused_at_once(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    said = refusal(make_job(), free)
    assert said.startswith(f"--address {free}: no Ray cluster answers (Connection refused); start one by `ray start")
    monkeypatch.setenv("RAY_ADDRESS", free)
    assert refusal(make_job()) == said


def test_a_worker_sees_one_gpu_only(make_job: MakeJob) -> None:
    job = make_job()
    named = job.teacher.model_copy(update={"device": "cuda:1"})
    said = refusal(replace(job, teacher=named), "10.0.0.1")
    assert said.startswith("teacher.device is 'cuda:1', but a worker sees only the GPU that Ray gives it, as cuda:0")


def test_what_ray_says_about_the_dead() -> None:
    """Texts of Ray 2.60; one of the middle of a dead process names the OOM killer among its causes."""
    process = (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
        "process was killed by the OOM killer due to high memory usage"
    )
    assert lost(process).cause.startswith("was killed or crashed") and not lost(process).is_of_node
    memory = "1 worker(s) were killed due to the node running low on memory. "
    assert "low on memory" in lost(memory).cause and not lost(memory).is_of_node
    assert lost("The actor died because its node has died. Node Id: 1cb081").is_of_node
    assert lost("RPC error: Socket closed rpc_code: 14.", is_unavailable=True).is_of_node
    import_error = (
        "failed to import\nTraceback (most recent call last):\nModuleNotFoundError: No module named 'alignkd'"
    )
    assert lost(import_error).cause == "ended: ModuleNotFoundError: No module named 'alignkd'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run.yaml", "--address", "a:1"], "--address needs --ray"),
        (["run.yaml", "--gpus-per-worker", "0"], "--gpus-per-worker needs --ray"),
        (["run.yaml", "--ray", "--worker", "0/2"], "--ray starts the workers itself; leave --worker out"),
        (["--status", "store", "--ray"], "--ray starts the workers itself; leave --status out"),
        (["run.yaml", "--ray", "--gpus-per-worker", "2"], "2.0 is not in the range"),
        (["run.yaml", "--ray", "--max-workers", "0"], "0 is not in the range"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["dump", *arguments])
    assert done.exit_code == 2 and said in done.output
