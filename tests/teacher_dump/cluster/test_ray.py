"""Dumps on a real Ray cluster of two machines, which are raylets here: processes and machines die, others join."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_driver
import yaml
from prepared_processes import PreparedProcess, PreparedProcesses

from alignkd.storage import verify_store
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.places import load_manifest
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.schema.commit_record import committed_shards
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.operation.status import FOLDER
from alignkd.teacher_dump.targets.capture import Capture

ROOT = Path(__file__).parents[3]
SUPPORT = ROOT / "tests" / "support"
SHARDS = 12
MAX_LOG_BYTES = 64 << 20
WaitUntil = Callable[[Callable[[], Any], str], None]


class Cluster:
    """The raylets, and their folder of logs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        (folder / "ray").mkdir()
        self.folder, self.environment = folder, environment
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "ray_nodes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.address, self.head = self.answer().split()

    def ask(self, what: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if line.startswith("answer: "):
                return line.removeprefix("answer: ").strip()
        raise AssertionError(f"the cluster has ended: {said}")

    def processes(self) -> list[int]:
        """The living processes of the cluster: all have its folder in their command or environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if str(self.folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def cluster(wait_until: WaitUntil) -> Iterator[Cluster]:
    """Two machines with one CPU each; nothing is left of them afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="akd-"))  # the paths of Ray's sockets are short
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        # time limits of the start, which a busy machine passes
        **dict.fromkeys(
            (
                "RAY_gcs_rpc_server_reconnect_timeout_s",
                "RAY_worker_register_timeout_seconds",
                "RAY_gcs_server_port_wait_time_s",
            ),
            "600",
        ),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", SUPPORT))),
    }
    made = Cluster(folder, environment)
    try:
        made.ask("add")
        yield made
    finally:
        made.process.communicate()
        wait_until(lambda: not made.processes(), "the end of Ray's processes")
        kept = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        assert kept < MAX_LOG_BYTES
        shutil.rmtree(folder)


@pytest.fixture
def config(golden: Path, golden_images: Path, tmp_path: Path) -> Path:
    """Twelve shards of two samples."""
    entries = json.loads((golden / "v1.json").read_text())
    many = [{**entry, "id": f"{number}-{entry['id']}"} for number in range(SHARDS // 2) for entry in entries]
    (tmp_path / "data.json").write_text(json.dumps(many))
    (tmp_path / "accidents.json").write_text("{}")
    model = {"checkpoint": str(golden / "teacher"), "vision_config": str(golden / "clip")}
    sections = {
        # the workers find it from the folder of the command
        "data": {"conversations": "data.json", "images": str(golden_images), "template": "v1"},
        "teacher": {**model, "batch": 3, "sanity": "off"},
        "store": {"path": str(tmp_path / "store"), "shard_size": 2, "logits": {"kind": "topk"}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    return tmp_path / "run.yaml"


@pytest.fixture
def start(
    cluster: Cluster, config: Path, prepared: PreparedProcesses, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PreparedProcess]:
    """start(*arguments): a process with the environment of the cluster, in the folder of the configuration."""
    monkeypatch.chdir(config.parent)
    return lambda *arguments: prepared.start(*arguments, **cluster.environment)


def hash_of(store: Path) -> str:
    assert verify_store(store, deep=True).ok and not list(store.glob(f"{TEMPORARY_PREFIX}*"))
    return root_hash(LocalFiles(store), load_manifest(store))


def dump_here(config: Path, store: Path, monkeypatch: pytest.MonkeyPatch, *, is_small: bool) -> str:
    """The root hash after an ordinary dump into the store."""
    from alignkd.pipeline.config.recipes import load_stage

    monkeypatch.chdir(config.parent)
    if is_small:
        monkeypatch.setattr(Capture, "__call__", Capture.__call__)  # to have it back afterwards
        ray_driver.small_device()
    job = load_stage(config, "dump", None, {"store": {"path": str(store)}}).dump_job()
    dump(job)
    return hash_of(store)


def committed(store: Path) -> int:
    return len(committed_shards(store)) if (store / "commits").exists() else 0


def test_killed_workers_and_a_lack_of_memory_cost_a_shard_and_change_no_byte(
    cluster: Cluster,
    config: Path,
    start: Callable[..., PreparedProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "accidents.json").write_text(json.dumps({"3": ["kill"], "6": ["memory"]}))
    process = start(SUPPORT / "ray_driver.py", config, cluster.address, 1)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    found = json.loads(output)
    assert (found["num_records"], found["written"], found["shards_written"]) == (24, 24, SHARDS)
    assert found["halved_batches"] >= SHARDS - 3  # without those of the worker that was killed before it told
    assert (found["status"]["samples"], found["status"]["total"]) == (24, 24)
    lost = [line for line in found["notices"] if line.startswith("shard ") and line.endswith("; tried again")]
    assert len(lost) == 2, found["notices"]
    assert "was killed or crashed" in lost[0] and "out of host memory (no memory for a record)" in lost[1]
    assert hash_of(tmp_path / "store") == dump_here(config, tmp_path / "alone", monkeypatch, is_small=True)
    assert not (tmp_path / "store" / FOLDER).exists()


def test_a_machine_that_dies_and_one_that_joins(
    cluster: Cluster,
    config: Path,
    start: Callable[..., PreparedProcess],
    tmp_path: Path,
    wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "accidents.json").write_text(json.dumps({"nodes": cluster.head}))
    process = start(SUPPORT / "ray_driver.py", config, cluster.address, 4)
    wait_until(lambda: (tmp_path / "halted").exists() or process.poll() is not None, "a shard on the other machine")
    assert process.poll() is None, process.errors()
    cluster.ask("kill")
    wait_until(lambda: committed(tmp_path / "store") >= 2, "two shards of the worker that is left")
    cluster.ask("add")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    found = json.loads(output)
    assert (found["num_records"], found["written"], found["shards_written"]) == (24, 24, SHARDS)
    assert any("its machine is gone; tried again" in line for line in found["notices"]), found["notices"]
    assert (tmp_path / "joined").exists()  # or the worker on the head's machine would be waiting
    assert hash_of(tmp_path / "store") == dump_here(config, tmp_path / "alone", monkeypatch, is_small=True)


def test_ctrl_c_and_a_kill_of_the_command_leave_what_any_other_run_completes(
    cluster: Cluster,
    config: Path,
    start: Callable[..., PreparedProcess],
    tmp_path: Path,
    wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = tmp_path / "store"
    command = ("-m", "alignkd.pipeline.cli", "dump", config, "--ray", "--address", cluster.address)
    options = ("--gpus-per-worker", "0", "--max-workers", "1", "--json")
    for number, least in ((signal.SIGINT, 1), (signal.SIGKILL, 2)):
        process = start(*command, *options)
        wait_until(lambda least=least: committed(store) >= least or process.poll() is not None, "a shard")  # noqa: B023
        assert process.poll() is None, process.errors()
        process.send_signal(number)
        output, errors = process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else -number), errors
        if number == signal.SIGINT:
            assert "alignkd: finishing 1 shard; Ctrl-C again abandons" in errors
            assert f"alignkd: Ray cluster at {cluster.address}: 2 machines, 0 GPU and 2 CPU" in errors
            assert json.loads(output)["shards_written"] == committed(store)
            assert not list(store.glob(f"{TEMPORARY_PREFIX}*"))
    assert 2 <= committed(store) < SHARDS
    alone = dump_here(config, tmp_path / "alone", monkeypatch, is_small=False)
    assert dump_here(config, store, monkeypatch, is_small=False) == alone
