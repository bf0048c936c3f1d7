"""An import that was killed or stopped is resumed, and the store is to the byte the one that nobody interrupted."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign_files
import pytest
from prepared_processes import PreparedProcesses

from alignkd.storage import StoreReader, verify_store
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WaitUntil = Callable[[Callable[[], Any], str], None]
SHARDS = 16


@pytest.fixture
def many(golden_world: Any, tmp_path: Path) -> list[Any]:
    """Arguments of an import of many shards."""
    entries = json.loads(golden_world.data.read_text())
    data = tmp_path / "many.json"
    data.write_text(
        json.dumps([{**entry, "id": f"{n}-{entry['id']}"} for n in range(SHARDS // 4) for entry in entries])
    )
    samples = [replace(sample, id=f"{n}-{sample.id}") for n in range(SHARDS // 4) for sample in golden_world.samples]
    file = foreign_files.write_vllm(tmp_path / "scored.jsonl", samples, 4)
    options = [str(data) if option == str(golden_world.data) else option for option in golden_world.options]
    return ["shards", "import", file, *options, "--shard-size", 1]


def test_killed_stopped_and_resumed_equals_unbroken(
    many: list[Any],
    tmp_path: Path,
    prepared: PreparedProcesses,
    alignkd_here: Alignkd,
    wait_until: WaitUntil,
    patience: float,
) -> None:
    assert alignkd_here(*many, "--out", tmp_path / "whole").returncode == 0
    store = tmp_path / "broken"

    def started() -> Any:
        before = len(list(store.glob("commits/*.json")))
        process = prepared.start("-m", "alignkd.pipeline.cli", *map(str, many), "--out", str(store))
        wait_until(lambda: len(list(store.glob("commits/*.json"))) > before or process.poll() is not None, "a shard")
        return process

    process = started()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(patience)
    assert 0 < len(StoreReader(store, allow_incomplete=True)) < SHARDS
    process = started()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(patience)
    assert process.wait(patience) == 130 and "run the same command again to resume" in errors, errors
    assert 1 < len(StoreReader(store, allow_incomplete=True)) < SHARDS
    done = alignkd_here(*many, "--out", store, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["num_records"] == SHARDS and 0 < report["shards_written"] < SHARDS and report["unused_rows"] is None
    assert StoreReader(store).root_hash() == StoreReader(tmp_path / "whole").root_hash()
    assert not verify_store(store).problems and not list(store.glob(f"{TEMPORARY_PREFIX}*"))
