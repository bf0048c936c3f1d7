"""Real processes that are killed, stopped and run side by side: in the end the file of a run without a break."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.pipeline.evaluation import parts as parts_module
from alignkd.pipeline.evaluation.run import run_eval
from alignkd.pipeline.evaluation.settings import EvalSettings
from alignkd.pipeline.runs.teacher import worker as worker_module
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.stops import DumpStopped

WaitUntil = Callable[[Callable[[], Any], str], None]
NUM_QUESTIONS = 32


@pytest.fixture
def settings(brief_model: Path, golden: Path, data_root: Path, tmp_path: Path) -> Callable[..., EvalSettings]:
    """settings(out, worker): GQA, one question at a time, in float32."""

    def make(out: str, worker: str | None = None) -> EvalSettings:
        return EvalSettings(
            checkpoint=str(brief_model),
            benchmarks=("gqa",),
            data=data_root,
            out=tmp_path / out,
            dtype="float32",
            batch=1,
            worker=worker,
            vision_config=golden / "clip",
        )

    return make


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "BLOCK", 6)


def start(settings: EvalSettings, *, halts_after: int | None = None) -> int:
    """One process, which does nothing more after so many questions: it waits for a signal, or the file `go`."""
    go = settings.out.parent / "go"
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)

            class Halts(DumpControl):
                def advance(self, **counts: int) -> None:
                    super().advance(**counts)
                    while self.status.samples == halts_after and not self.stops.finishing and not go.exists():
                        time.sleep(0.01)

            worker_module.DumpControl = Halts  # type: ignore[misc]
            code = run_eval(settings).interrupted_by
        except DumpStopped as stop:
            code = 128 + stop.signal
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def written(out: Path) -> int:
    """Answers in the journals."""
    files = list((out / "gqa" / "parts").glob("*.jsonl"))
    return sum(file.read_bytes().count(b'"position"') for file in files)


def results(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "results.json").read_text())
    return values


def without_times(out: Path) -> dict[str, Any]:
    found = results(out)
    for benchmark in found["benchmarks"].values():
        del benchmark["seconds"], benchmark["questions_per_second"]
    return found


def test_killed_and_shared_by_two_gives_the_bytes_of_one(
    settings: Callable[..., EvalSettings], tmp_path: Path, wait_until: WaitUntil
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run_eval(settings("alone"))
    killed = start(settings("shared", "1/2"), halts_after=8)
    wait_until(lambda: written(shared) == 8, "eight answers")
    os.kill(killed, signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    assert not (shared / "gqa" / "answers.jsonl").exists() and not (shared / "results.json").exists()
    begun = {file.name: file.read_bytes().count(b'"position"') for file in (shared / "gqa" / "parts").iterdir()}
    assert begun == {"00000001.jsonl": 6, "00000003.jsonl": 2}  # every second block is the worker's own
    torn = shared / "gqa" / "parts" / "00000003.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"position": 20, "text": "hal')
    workers = [start(settings("shared", f"{rank}/2")) for rank in range(2)]
    assert [ended(child) for child in workers] == [0, 0]
    assert written(shared) == NUM_QUESTIONS
    for file in ("answers.jsonl", "questions.json"):
        assert (shared / "gqa" / file).read_bytes() == (alone / "gqa" / file).read_bytes()
    assert without_times(shared) == without_times(alone)
    assert results(shared)["benchmarks"]["gqa"]["headline"] is not None
    assert not (shared / "gqa" / ".status").exists()


def test_of_two_the_last_one_scores(
    settings: Callable[..., EvalSettings], tmp_path: Path, wait_until: WaitUntil
) -> None:
    out = tmp_path / "out"
    slow = start(settings("out", "0/2"), halts_after=2)
    wait_until(lambda: written(out) == 2, "two answers")
    assert ended(start(settings("out", "1/2"))) == 0
    # it took all blocks but the one in hand, and the one that is claimed next
    assert written(out) == 2 + NUM_QUESTIONS - 12
    assert "10 of 32 questions are not asked yet" in results(out)["benchmarks"]["gqa"]["no_score"]
    assert not (out / "gqa" / "answers.jsonl").exists()
    (tmp_path / "go").touch()
    assert ended(slow) == 0 and written(out) == NUM_QUESTIONS
    assert results(out)["benchmarks"]["gqa"]["headline"] is not None


def launched(settings: EvalSettings, monkeypatch: pytest.MonkeyPatch, rank: int, **options: Any) -> int:
    """A process of two that a launcher starts."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return start(settings, **options)


def test_the_first_process_of_a_launcher_ends_last(
    settings: Callable[..., EvalSettings], tmp_path: Path, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    slow = launched(settings("out"), monkeypatch, 1, halts_after=2)
    wait_until(lambda: written(out) == 2, "two answers")
    first = launched(settings("out"), monkeypatch, 0)
    wait_until(lambda: written(out) == 2 + NUM_QUESTIONS - 12, "all other answers")
    assert not (out / "results.json").exists() or results(out)["benchmarks"]["gqa"]["headline"] is None
    assert os.waitpid(first, os.WNOHANG) == (0, 0)
    (tmp_path / "go").touch()
    assert ended(slow) == 0 and ended(first) == 0
    assert results(out)["benchmarks"]["gqa"]["headline"] is not None


def test_the_first_process_of_a_launcher_asks_what_a_killed_one_leaves(
    settings: Callable[..., EvalSettings], tmp_path: Path, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    killed = launched(settings("out"), monkeypatch, 1, halts_after=2)
    wait_until(lambda: written(out) == 2, "two answers")
    first = launched(settings("out"), monkeypatch, 0)
    wait_until(lambda: written(out) == 2 + NUM_QUESTIONS - 12, "all other answers")
    os.kill(killed, signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    assert ended(first) == 0 and written(out) == NUM_QUESTIONS
    assert results(out)["benchmarks"]["gqa"]["headline"] is not None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 2), (signal.SIGTERM, 128 + 15)])
def test_a_signal_loses_no_answer(
    number: signal.Signals, code: int, settings: Callable[..., EvalSettings], tmp_path: Path, wait_until: WaitUntil
) -> None:
    out = tmp_path / "out"
    child = start(settings("out"), halts_after=3)
    wait_until(lambda: written(out) == 3, "three answers")
    os.kill(child, number)
    assert ended(child) == code and written(out) == 3
    end = run_eval(settings("out"))
    assert end.results["benchmarks"]["gqa"]["answered"] == NUM_QUESTIONS == written(out)
