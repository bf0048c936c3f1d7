"""Threads, windows and batches change when a record is made, never what is in the store."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignkd.storage import StoreError, StoreReader, StoreWriter
from alignkd.storage.write.shard import ShardWriter
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation import shard_thread
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.shard_thread import ShardThread
from alignkd.teacher_dump.preparation import Unusable
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.family import Vision
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint

MakeJob = Callable[..., DumpJob]
ANSWERS = ["yes", "two cups of coffee on a table", "green", "it is to the left of the other one, as far as one can see"]


def tree(path: Path | str) -> dict[str, bytes]:
    root = Path(path)
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.fixture
def entries(golden: Path) -> list[Any]:
    """Twelve samples; three pictures in turn, and text alone."""
    images = [entry.get("image") for entry in json.loads((golden / "v1.json").read_text())]
    made = []
    for number in range(12):
        image = images[number % 4]
        question = ("<image>\n" if image else "") + f"What is it ({number})?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": ANSWERS[number % 3 + number % 2]}]
        made.append({"id": f"n{number}", "conversations": turns} | ({"image": image} if image else {}))
    return made


class Backwards(DumpControl):
    """Takes the shards from the last to the first."""

    @contextmanager
    def over(self, store: StoreWriter) -> Iterator[Iterator[int]]:
        with super().over(store) as shards:
            yield iter(sorted(shards, reverse=True))


def test_bytes_depend_on_the_plan_alone(make_job: MakeJob, entries: list[Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"shard_size": 5, "window": 4, "batch": 3, "logits": {"kind": "nucleus"}}
    dump(make_job(entries, path=tmp_path / "one", **settings))
    dump(make_job(entries, path=tmp_path / "two", data_workers=4, control=Backwards(), **settings))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    (tmp_path / "one" / "commits" / "00000001.json").unlink()
    assert dump(make_job(entries, path=tmp_path / "one", **settings)).shards_written == 1
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_records_are_in_the_order_of_the_plan(make_job: MakeJob, entries: list[Any], tmp_path: Path) -> None:
    expected = None
    for window, batch, budget in ((1, 1, 1), (5, 2, 8192), (128, 64, 700)):
        path = tmp_path / f"{window}"
        dump(make_job(entries, path=path, shard_size=7, window=window, batch=batch, token_budget=budget))
        ids = list(StoreReader(path).ids)
        assert expected in (None, ids) and sorted(ids) == sorted(f"n{number}" for number in range(12))
        expected = ids


def test_each_picture_once_per_window(make_job: MakeJob, entries: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, seen, forwards = [], [], []
    process, encode, hidden = ImageProcessor.process, MobileVLM.encode_images, MobileVLM.decoder_states

    def counted_encode(self: MobileVLM, images: Any, samples: Any = None) -> Vision:
        seen.append(len(images))
        return encode(self, images, samples)

    def counted_hidden(self: MobileVLM, embeds: Tensor) -> Tensor:
        forwards.append(len(embeds))
        return hidden(self, embeds)

    monkeypatch.setattr(ImageProcessor, "process", lambda self, image: (decoded.append(1), process(self, image))[1])
    monkeypatch.setattr(MobileVLM, "encode_images", counted_encode)
    monkeypatch.setattr(MobileVLM, "decoder_states", counted_hidden)
    dump(make_job(entries, shard_size=12, window=12, batch=2))
    assert (sum(forwards), sum(seen), len(decoded)) == (12, 3, 3)


@pytest.mark.parametrize("where", ["append", "commit"])
def test_an_error_of_the_thread_is_the_callers(
    where: str, make_job: MakeJob, entries: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ShardWriter, *arguments: object) -> None:
        raise StoreError(f"shard {self.shard}: no room at all; make room")

    monkeypatch.setattr(ShardWriter, where, refuse)
    job = make_job(entries, shard_size=4, window=2, batch=1)
    with pytest.raises(StoreError, match=r"^shard 0: no room at all; make room$"):
        dump(job)
    assert not list(Path(job.store.path).glob(".tmp*"))
    assert not any(thread.name == "shards" for thread in threading.enumerate())


class StopsAfter(DumpControl):
    """Raises in `check` once so many samples are done."""

    limit = 5

    def check(self) -> None:
        if self.status.samples >= self.limit:
            raise KeyboardInterrupt


def test_a_stopped_run_leaves_whole_shards_and_nothing_else(
    make_job: MakeJob, entries: list[Any], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"shard_size": 3, "window": 2, "batch": 1}
    job = make_job(entries, path=tmp_path / "stopped", control=StopsAfter(), **settings)
    with pytest.raises(KeyboardInterrupt):
        dump(job)
    committed = sorted((tmp_path / "stopped" / "commits").iterdir())
    assert 1 <= len(committed) < 4 and not list((tmp_path / "stopped").glob(".tmp*"))
    assert not any(thread.name == "shards" for thread in threading.enumerate())
    dump(make_job(entries, path=tmp_path / "stopped", **settings))
    dump(make_job(entries, path=tmp_path / "whole", **settings))
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")


def test_a_complete_store_asks_for_no_teacher(
    make_job: MakeJob, entries: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(entries, shard_size=12)
    assert dump(job).shards_written == 1
    monkeypatch.setattr(MobileVLMCheckpoint, "load_model", lambda *arguments, **options: pytest.fail("loaded"))
    assert dump(job).shards_written == 0


class Sink:
    """Notes what it is given; slow on request."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[Any] = []
        self.seconds = seconds

    def quarantine(self, index: int, id: str, reason: str) -> None:
        time.sleep(self.seconds)
        self.calls.append(index)

    def commit(self) -> str:
        self.calls.append("commit")
        return "committed"

    def __exit__(self, *arguments: object) -> None:
        self.calls.append("exit")


def unusable(place: int) -> Unusable:
    sample = Sample(index=place, id=str(place), images=(), turns=())
    return Unusable(place=place, sample=sample, reason=SampleError("no"))


def config(**values: Any) -> StoreConfig:
    return StoreConfig(path="store", **values)


@given(st.permutations(range(12)), st.integers(1, 5))
def test_any_order_of_arrival_is_put_right(order: list[int], step: int) -> None:
    sink, done = Sink(), []
    with ShardThread(config(), lambda index: "data.json", done.append) as writer:
        writer.begin(sink)  # type: ignore[arg-type]
        for start in range(0, len(order), step):
            writer.put([unusable(place) for place in order[start : start + step]])
        writer.commit()
        writer.finish()
    assert sink.calls == [*range(12), "commit", "exit"]
    assert sum(part.errors for part in done) == 12 and [c for part in done for c in part.commits] == ["committed"]


def test_a_slow_disk_makes_the_teacher_wait() -> None:
    sink, put = Sink(seconds=0.01), []
    with ShardThread(config(), lambda index: "data.json", lambda done: None) as writer:
        writer.begin(sink)  # type: ignore[arg-type]
        for place in range(40):
            writer.put([unusable(place)])
            put.append(place - len(sink.calls))
        writer.finish()
    assert max(put) <= shard_thread.QUEUE_BATCHES + 2  # the queue, the one in work, the one just put
    assert sink.calls == [*range(40), "exit"]


def test_limits_on_unusable_samples_are_those_of_the_whole_run() -> None:
    for settings, reason in (
        (
            {"max_errors": 2},
            r"^data.json: sample '2' \(index 2\): no; 3 unusable samples, store.max_errors is 2; repair",
        ),
        ({"on_error": "stop"}, r"^data.json: sample '0' \(index 0\): no \(store.on_error is 'stop'\)$"),
    ):
        sink = Sink()
        with (
            pytest.raises(InputError, match=reason),
            ShardThread(config(**settings), lambda index: "data.json", lambda done: None) as writer,
        ):
            writer.begin(sink)  # type: ignore[arg-type]
            writer.put([unusable(place) for place in range(9)])
            writer.finish()
        assert sink.calls[-1] == "exit" and "commit" not in sink.calls
