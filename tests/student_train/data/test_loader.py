"""Micro-batches are the same whoever prepares them, and data workers live and die with the training process."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batch_bytes import bytes_of
from prepared_processes import PreparedProcess, PreparedProcesses

from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.division import Divisions
from alignkd.student_train.data.handoff.stream import FromWorkers
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.plan import micro_batches
from alignkd.student_train.trainer import train
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation

HERE = Path(__file__).parent
Batches = Callable[..., Iterator[TrainBatch]]
MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def dataset(many_store: Path, student_builder: MobileVLMPreparation, images_folder: Path) -> CachedDataset:
    return CachedDataset(StoreReader(many_store), student_builder, images_folder)


@pytest.fixture
def batches_of(tmp_path: Path) -> Batches:
    """batches_of(dataset, workers): two micro-batches of 2 samples per optimiser step, of one rank among two."""

    def start(dataset: CachedDataset, workers: int, *, first_step: int = 0, **settings: Any) -> Iterator[TrainBatch]:
        defaults: dict[str, Any] = {"steps": 6, "micro_batch": 2, "global_batch": 8}
        config = TrainConfig(output=tmp_path, data_workers=workers, **defaults | settings)
        order = SampleOrder(len(dataset), config.seed, config.global_batch_size(2))
        divisions = Divisions(order, dataset.lengths, config.micro_batch_limit, world_size=2)
        return micro_batches(
            TrainingSet([dataset]), divisions, config, Ranks(1, 2, torch.device("cpu")), first_step=first_step
        )

    return start


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(dataset: CachedDataset, batches_of: Batches, workers: int) -> None:
    expected = [bytes_of(batch) for batch in batches_of(dataset, 0)]
    assert len(expected) == 12
    assert [bytes_of(batch) for batch in batches_of(dataset, workers)] == expected
    assert [bytes_of(batch) for batch in batches_of(dataset, workers, first_step=4)] == expected[8:]


def test_batches_that_are_kept_stay_what_they_are(dataset: CachedDataset, batches_of: Batches) -> None:
    """Twelve batches at once are more than there are slots."""
    kept = list(batches_of(dataset, 1))
    assert [bytes_of(batch) for batch in kept] == [bytes_of(batch) for batch in batches_of(dataset, 0)]


def test_larger_and_larger_batches(
    dump: Any, many_samples: Any, student_builder: MobileVLMPreparation, batches_of: Batches, tmp_path: Path
) -> None:
    """A slot made for short conversations takes long ones."""
    samples = [dict(sample) for sample in many_samples[:6]]
    for sample in samples[3:]:
        question, answer = sample["conversations"]
        sample["conversations"] = [question, {**answer, "value": answer["value"] * 40}]
    store = StoreReader(dump(tmp_path / "growing", samples))
    dataset = CachedDataset(store, student_builder, HERE.parents[1] / "golden" / "images")
    expected = [bytes_of(batch) for batch in batches_of(dataset, 0, micro_batch=1, global_batch=2)]
    assert max(map(len, expected)) > 4 * min(map(len, expected))
    assert [bytes_of(batch) for batch in batches_of(dataset, 1, micro_batch=1, global_batch=2)] == expected


@pytest.mark.usefixtures("one_thread")
def test_losses_are_bit_identical(
    many_store: Path, make_job: MakeJob, read_metrics: Callable[[Path], Any], tmp_path: Path
) -> None:
    for workers in (0, 1, 2):
        train(make_job(many_store, output=tmp_path / str(workers), steps=3, data_workers=workers))
    assert read_metrics(tmp_path / "0") == read_metrics(tmp_path / "1") == read_metrics(tmp_path / "2")


@pytest.fixture(autouse=True)
def _no_handler_of_other_loaders() -> Iterator[None]:
    """A stock DataLoader, as other tests use one, leaves a handler behind that raises wherever the program is."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_workers_end_with_the_iterator(dataset: CachedDataset, batches_of: Batches) -> None:
    before = set(multiprocessing.active_children())  # of a failed test whose traceback is kept
    batches = batches_of(dataset, 2)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    handler = signal.getsignal(signal.SIGCHLD)
    assert handler == signal.SIG_DFL  # none that raises in the middle of something else
    del batches
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def test_a_program_ends_although_it_still_holds_an_iterator(patience: float) -> None:
    code = "from alignkd.student_train.data.handoff.stream import FromWorkers\n"
    code += "held = FromWorkers(int, range(100), 2); next(held)"
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=root, timeout=patience
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_killed_worker_is_one_line(dataset: CachedDataset, batches_of: Batches) -> None:
    before = set(multiprocessing.active_children())  # of a failed test whose traceback is kept
    batches = batches_of(dataset, 2, steps=1000)
    next(batches)
    victim = (set(multiprocessing.active_children()) - before).pop()
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(
        TrainError, match=rf"{victim.pid}.*it was killed, possibly.*out of memory.*lower data_workers 2"
    ) as error:
        for _ in batches:
            pass
    assert "\n" not in str(error.value)


def test_a_killed_worker_ends_training_with_that_line(many_store: Path, make_job: MakeJob) -> None:
    """The signal comes while the main thread computes; the error comes where it asks for the next batch."""

    others = set(multiprocessing.active_children())

    def kill() -> None:
        while not (mine := set(multiprocessing.active_children()) - others):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(mine.pop().pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TrainError, match="it was killed, possibly"):
        train(make_job(many_store, steps=1000, data_workers=1))
    killer.join()


def test_killing_the_trainer_leaves_nothing(
    many_store: Path,
    golden_folder: Path,
    images_folder: Path,
    prepared: PreparedProcesses,
    wait_until: Callable[..., None],
) -> None:
    arguments = (many_store, golden_folder / "student", golden_folder / "clip", images_folder)
    child = prepared.start(HERE / "loader_process.py", *arguments)
    wait_until(lambda: child.poll() is not None or "\n" in child.output(), "the first batch")
    workers = [int(pid) for pid in child.output().split()]
    assert len(workers) == 2
    assert all(map(_lives, workers))
    mapped = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in (child.pid, *workers)]
    shared = {
        line.split(maxsplit=5)[5] for lines in mapped for line in lines if "/dev/shm/" in line or "/memfd:" in line
    }
    assert shared
    child.kill()
    child.communicate()
    wait_until(lambda: not any(map(_lives, workers)), "the workers' end")
    assert not any(Path(path).exists() for path in shared)


def test_workers_outlive_the_first_signals(dataset: CachedDataset, batches_of: Batches) -> None:
    expected = [bytes_of(batch) for batch in batches_of(dataset, 0)]
    batches = batches_of(dataset, 2)
    found = [bytes_of(next(batches))]
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker.pid or 0, number)
    assert found + [bytes_of(batch) for batch in batches] == expected


def test_no_room_for_workers_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As in a container with a full /dev/shm; nothing is begun that would fail once more when it is thrown away."""
    small = SimpleNamespace(f_bavail=3, f_frsize=4096, f_blocks=16)
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    needed = 14 * os.sysconf("SC_PAGE_SIZE")
    with pytest.raises(TrainError) as error:
        FromWorkers(lambda number: number, range(2), 2)
    assert str(error.value).startswith(
        f"/dev/shm: 12288 bytes are free, 2 data workers need {needed}; set train.data_w"
    )
    assert "docker run --shm-size" in str(error.value) and "\n" not in str(error.value)
    small.f_bavail = 14 * os.sysconf("SC_PAGE_SIZE") // 4096
    assert list(FromWorkers(lambda number: number, range(2), 2)) == [0, 1]
    assert "Traceback" not in capfd.readouterr().err


def test_a_signal_to_the_whole_group_is_a_clean_stop(
    many_store: Path,
    make_job: MakeJob,
    start_child: Callable[..., PreparedProcess],
    wait_until: Callable[..., None],
    patience: float,
) -> None:
    """As torchrun does it: the step in hand is completed with batches of the workers, and saved."""
    job = make_job(many_store, steps=100_000, data_workers=2)
    child = start_child(job, new_session=True)
    metrics = job.train.output / "metrics.jsonl"
    wait_until(
        lambda: child.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 3),
        "the first steps",
    )
    os.killpg(child.pid, signal.SIGTERM)
    _, errors = child.communicate(timeout=patience)
    assert child.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert len(list((job.train.output / "checkpoints").iterdir())) == 1


def _lives(pid: int) -> bool:
    """Whether a process runs; one that ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
