"""A device that is too small: batches are halved and counted, a sample that does not fit alone is listed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignkd.storage import StoreReader, verify_store
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.memory_faults import in_halves
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

MakeJob = Callable[..., DumpJob]


@given(st.integers(1, 40), st.integers(0, 12))
def test_every_item_once_and_in_order_within_the_limit(num: int, room: int) -> None:
    sizes: list[int] = []

    def compute(items: list[int]) -> list[int]:
        if len(items) > room:
            raise torch.OutOfMemoryError(f"no room for {len(items)}")
        sizes.append(len(items))
        return [item * 2 for item in items]

    halved: list[None] = []
    found = list(in_halves(compute, list(range(num)), lambda: halved.append(None)))
    assert [item for items, _ in found for item in items] == list(range(num))
    for items, results in found:
        assert results == ([item * 2 for item in items] if room else None)
    assert max(sizes, default=0) <= room and len(halved) == len(found) - 1
    assert not room or len(sizes) == 1 or 2 * max(sizes) > room  # no smaller than it must be


def test_other_errors_pass() -> None:
    def compute(items: list[int]) -> list[int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(in_halves(compute, [1, 2], lambda: None))


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"])
def test_plain_errors_that_mean_it_halve_the_batch(message: str) -> None:
    def compute(items: list[int]) -> list[int]:
        if len(items) > 1:
            raise RuntimeError(message)
        return items

    assert len(list(in_halves(compute, [1, 2], lambda: None))) == 2


def test_an_unclear_error_is_no_verdict_about_a_sample() -> None:
    def compute(items: list[int]) -> list[int]:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")

    with pytest.raises(RuntimeError, match="NOT_INITIALIZED"):
        list(in_halves(compute, [1, 2, 3], lambda: None))


def test_nothing_is_tried_again_on_a_broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access every call fails, some of them with the words for lack of memory."""
    tried: list[int] = []

    def compute(items: list[int]) -> list[int]:
        tried.append(len(items))
        raise RuntimeError("CUDA error: out of memory")

    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(in_halves(compute, [1, 2, 3, 4], lambda: None))
    assert tried == [4]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`")]
)
def test_a_dump_without_memory_ends_with_one_line(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def decoder_states(self: MobileVLM, embeds: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(MobileVLM, "decoder_states", decoder_states)
    with pytest.raises(InputError, match=r"lower teacher\.token_budget \(now 8192\).*alignkd plan CONFIG") as stopped:
        dump(make_job())
    assert "\n" not in str(stopped.value)


def small_device(monkeypatch: pytest.MonkeyPatch, room: int) -> list[tuple[int, int]]:
    """Forward passes of more than `room` padded tokens do not fit; what was tried."""
    tried: list[tuple[int, int]] = []
    true = MobileVLM.decoder_states

    def decoder_states(self: MobileVLM, embeds: Tensor) -> Tensor:
        tried.append((embeds.shape[0], embeds.shape[1]))
        if embeds.shape[0] * embeds.shape[1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return true(self, embeds)

    monkeypatch.setattr(MobileVLM, "decoder_states", decoder_states)
    return tried


def targets(path: Path | str) -> dict[str, list[np.ndarray]]:
    reader = StoreReader(path)
    names = ("attention_float32", "vision_embeddings_float32", "vision_top_embeddings_float32", "logits")
    records = [reader[number] for number in range(len(reader))]
    return {record.id: [value for name in names if (value := getattr(record, name)) is not None] for record in records}


def test_a_halved_batch_gives_the_same_targets(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = make_job(batch=4, shard_size=4, path=tmp_path / "whole")
    assert dump(whole).halved_batches == 0
    tried = small_device(monkeypatch, room=700)
    heard: list[str] = []
    control = DumpControl(notice=heard.append)
    job = make_job(batch=4, shard_size=4, path=tmp_path / "halved", control=control)
    result = dump(job)
    assert tried[0][0] == 4 and result.halved_batches == control.status.halved > 0 and result.num_records == 4
    assert len(heard) == 2 and "lower teacher.token_budget (now 8192)" in heard[1]
    expected, found = targets(whole.store.path), targets(job.store.path)
    for sample_id, values in expected.items():
        for one, other in zip(values, found[sample_id], strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_a_sample_that_does_not_fit_alone_is_listed(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    small_device(monkeypatch, room=300)
    job = make_job(batch=4, shard_size=4, sanity="stop")
    result = dump(job)  # the checks of the teacher do not fit either, and say so
    assert "not checked" in {found.outcome for found in result.sanity}
    reasons = {sample_id: reason for _, sample_id, reason in result.quarantined}
    lengths = dict(zip(StoreReader(job.store.path).ids, StoreReader(job.store.path).sequence_lengths, strict=True))
    assert reasons and all("do not fit the memory of cpu, even alone" in reason for reason in reasons.values())
    assert max(lengths.values()) <= 300 and lengths.keys() | reasons.keys() == {"ft-0", "ft-1", "ft-2", "ft-3"}
    assert verify_store(job.store.path, deep=True).ok
