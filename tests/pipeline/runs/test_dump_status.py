"""`alignkd dump --status`: a dump that runs, is stopped, is complete, seen from another shell."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prepared_processes import PreparedProcesses

from alignkd.pipeline.cli import main
from alignkd.pipeline.console.printing import format_duration

WriteConfig = Callable[..., Path]


def status(store: Path, *options: str) -> Any:
    """The command's output, in this process: it starts without torch and is quick."""
    found = CliRunner().invoke(main, ["dump", "--status", str(store), *options])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout) if "--json" in options else found.stdout


@pytest.fixture
def many(write_config: WriteConfig, golden: Path, tmp_path: Path) -> Path:
    """A dump that is not done before somebody looks: 1200 samples, each in a forward pass of its own."""
    entries = json.loads((golden / "v1.json").read_text())
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{**entry, "id": f"{n}-{entry['id']}"} for n in range(300) for entry in entries]))
    return write_config(
        data={"conversations": str(data)},
        teacher={"token_budget": 1, "window": 2, "sanity": "off"},
        store={"shard_size": 4, "attention": "sqrt_u8", "logits": {"kind": "topk"}},
    )


def test_a_running_dump_is_seen_and_sigterm_stops_it_with_143(
    many: Path, tmp_path: Path, prepared: PreparedProcesses, wait_until: Callable[..., None], patience: float
) -> None:
    store = tmp_path / "store"
    process = prepared.start("-m", "alignkd.pipeline.cli", "dump", many, "--worker", "0/2")
    try:
        seen: dict[str, Any] = {}

        def is_under_way() -> bool:
            assert process.poll() is None, process.communicate()
            seen.update(status(store, "--json") if (store / "manifest.json").exists() else {})
            return bool(seen.get("shards_done") and seen["workers"] and seen["workers"][0]["samples"])

        wait_until(is_under_way, "a worker with samples")
        (worker,) = seen["workers"]
        assert seen["state"] == worker["state"] == "running" and worker["pid"] == process.pid
        assert (worker["worker"], seen["samples"], seen["shards"], worker["total"]) == ("0/2", 1200, 300, 600)
        assert worker["rate"] > 0 and worker["tokens"] > 0 and seen["seconds_left"] > 0
        page = status(store)
        assert re.search(r": running, \d+\.\d%, .* samples/s, .* left\n", page) and str(process.pid) in page
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=patience)
    finally:
        process.kill()
    assert process.returncode == 143 and output == ""
    device, stopped = errors.split("\n", 1)
    assert device.startswith("alignkd: device cpu (")
    assert stopped.strip() == "alignkd: stopped by SIGTERM; run the same command again to resume"
    after = status(store, "--json")
    assert after["state"] == "stopped" and after["workers"][0]["state"] == "stopped" and after["seconds_left"] is None
    assert 0 < after["shards_done"] < 300 and after["samples_done"] == 4 * after["shards_done"]
    assert "no worker runs; run the same `alignkd dump` again to resume" in status(store)


def test_a_complete_store_has_no_workers_and_a_killed_one_is_dead(write_config: WriteConfig, tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["dump", str(write_config(teacher={"sanity": "off"})), "--json"])
    assert ran.exit_code == 0 and json.loads(ran.stdout)["worker"] == "0/1"
    store = tmp_path / "store"
    complete = status(store, "--json")
    assert (complete["state"], complete["records"], complete["workers"], complete["seconds_left"]) == (
        "complete", 4, [], 0.0,
    )  # fmt: skip
    assert complete["bytes"] == sum(f.stat().st_size for f in (store / "shards").glob("0*/**/*") if f.is_file())

    (store / "commits" / "00000000.json").unlink()
    child = os.fork()
    if not child:
        from alignkd.teacher_dump.operation.status import FolderPlace, WorkerStatus

        place = FolderPlace(store / ".status", "worker")
        place.write(WorkerStatus(worker="0/1", shards=(0,), in_hand=2, rate=1.0, message="none"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = status(store, "--json")
    assert (left["state"], left["workers"][0]["state"], left["samples_done"], left["rate"]) == ("stopped", "dead", 0, 0)
    assert left["seconds_left"] is None and " dead " in status(store)


def test_wrong_use_is_told_apart(tmp_path: Path) -> None:
    runner = CliRunner()
    nothing = runner.invoke(main, ["dump"])
    both = runner.invoke(main, ["dump", "run.yaml", "--status", "store"])
    assert nothing.exit_code == both.exit_code == 2 and "give either CONFIG" in nothing.stderr
    no_store = runner.invoke(main, ["dump", "--status", str(tmp_path / "none")])
    assert no_store.exit_code == 1 and len(no_store.stderr.splitlines()) == 1 and "none" in no_store.stderr


def test_status_starts_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom alignkd.pipeline.cli import main\n"
        f"CliRunner().invoke(main, ['dump', '--status', {str(tmp_path)!r}])\nprint('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (90, "90 s"), (119.4, "119 s"), (120, "2 min"), (3600, "1.0 h"), (172800, "2.0 days")],
)
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {}\n")
    found = CliRunner().invoke(main, ["dump", "--status", str(tmp_path / "run.yaml")])
    assert found.exit_code == 1 and "is this the folder of a store?" in found.output
