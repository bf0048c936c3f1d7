"""A dump of models of transformers: batches, windows, workers, kill -9 and resuming change nothing in the store."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignkd.storage import Record, StoreReader, TruncatedLogits, as_float32, verify_store
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.workers import Worker
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.open import open_checkpoint

FamilyJob = Callable[..., DumpJob]
NUM_SAMPLES = 7
# tiles with text between them; layers that see images again; an image beside others has other tokens
FAMILIES = ["smolvlm", "qwen3_vl", "llava_onevision"]
FLOAT_TARGETS = ("attention_float32", "vision_embeddings_float32", "vision_top_embeddings_float32", "logits")
EXACT_FIELDS = (
    "key", "images", "image_sha256", "tokens_of_image", "input_ids", "labels", "vision_positions",
    "tqv_query_positions", "supervised_positions", "vision_top_index",
)  # fmt: skip


def tree(path: Path | str) -> dict[str, bytes]:
    root = Path(path)
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def records_of(job: DumpJob) -> dict[str, Record]:
    reader = StoreReader(job.store.path)
    return {reader.ids[number]: reader[number] for number in range(len(reader))}


def check_equal(one: Record, other: Record) -> None:
    for name in EXACT_FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=f"{one.id} {name}")
    for name in FLOAT_TARGETS:
        values, found = getattr(one, name), getattr(other, name)
        assert (values is None) == (found is None)
        if values is not None:
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=2e-5, err_msg=f"{one.id} {name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_windows_change_nothing_and_a_resumed_store_is_an_unbroken_one(
    family: str, family_job: FamilyJob, tmp_path: Path
) -> None:
    whole = family_job(family)
    assert dump(whole).num_records == NUM_SAMPLES and verify_store(whole.store.path, deep=True).ok
    expected, before = records_of(whole), tree(whole.store.path)
    single = family_job(family, batch=1, window=2, path=tmp_path / "single", backend="webdataset", shard_size=7)
    dump(single)
    found = records_of(single)
    assert found.keys() == expected.keys()
    for sample_id, record in expected.items():
        check_equal(record, found[sample_id])
        assert record.input_ids.shape == (record.sequence_length,) and (record.input_ids >= 0).all()
    (tmp_path / "store" / "commits" / "00000001.json").unlink()
    assert dump(whole).shards_written == 1
    assert tree(whole.store.path) == before


def test_what_decides_the_vision_tokens_of_an_image(family_job: FamilyJob) -> None:
    """`near.png` is alone in two samples and beside others in three; both ways it has the same tokens each time."""
    job = family_job("llava_onevision", shard_size=7, window=7, batch=7)
    dump(job)
    counts: dict[bool, set[int]] = {True: set(), False: set()}
    embeddings: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for record in records_of(job).values():
        for number, image in enumerate(record.images):
            if image == "near.png":
                alone = record.num_images == 1
                counts[alone].add(record.tokens_of_image[number])
                assert record.vision_embeddings is not None
                embeddings[alone].append(as_float32(record.vision_embeddings[number]))
    assert len(counts[True]) == len(counts[False]) == 1 and counts[True] != counts[False]
    for same in embeddings.values():
        assert len(same) > 1
        for values in same[1:]:
            np.testing.assert_allclose(values, same[0], rtol=1e-5, atol=1e-5)


def start(job: DumpJob, worker: Worker, *, halts_after: int) -> int:
    """A worker in a forked process; after `halts_after` samples it does nothing more and waits to be killed."""

    def progress(status: WorkerStatus) -> None:
        while status.samples >= halts_after:
            signal.pause()

    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            dump(replace(job, control=DumpControl(worker, progress=progress, visible=True)))
            code = 0
        finally:
            os._exit(code)
    return child


def test_two_workers_killed_in_a_shard_and_a_resumed_run_give_the_bytes_of_one(
    family_job: FamilyJob, tmp_path: Path
) -> None:
    whole = family_job("qwen3_vl", path=tmp_path / "whole", shard_size=1, batch=1)
    dump(whole)
    job = family_job("qwen3_vl", shard_size=1, batch=1)
    # each in its second shard or, on a busy machine, a later one
    children = [start(job, Worker(rank=rank, count=2), halts_after=2) for rank in (0, 1)]
    committed, ended = tmp_path / "store" / "commits", dict[int, int]()
    try:
        while not committed.is_dir() or len(list(committed.iterdir())) < 2:
            for child in set(children) - ended.keys():
                found, status = os.waitpid(child, os.WNOHANG)
                ended |= {child: os.waitstatus_to_exitcode(status)} if found else {}
            assert set(ended.values()) <= {0}
    finally:
        for child in set(children) - ended.keys():
            os.kill(child, signal.SIGKILL)
            ended[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # the later one may find the last shards claimed by the other, which looks ahead, and end before it is killed
    assert set(ended.values()) in ({-signal.SIGKILL}, {-signal.SIGKILL, 0})
    done = len(list(committed.iterdir()))
    assert dump(job).shards_written == len(list((tmp_path / "whole" / "commits").iterdir())) - done > 0
    assert StoreReader(job.store.path).root_hash() == StoreReader(whole.store.path).root_hash()


def test_padding_of_the_vocabulary_is_never_among_the_kept_entries(family_job: FamilyJob, tmp_path: Path) -> None:
    """The head has more columns than the tokenizer has entries, and random weights make them as likely as others."""
    exact = family_job("qwen2_5_vl", path=tmp_path / "exact", shard_size=7)
    kept = family_job("qwen2_5_vl", shard_size=7, logits={"kind": "topk", "top_k": 2000})
    dump(exact)
    dump(kept)
    shapes = StoreReader(kept.store.path).manifest.shapes
    num_tokens = open_checkpoint(exact.teacher.checkpoint).preparation().num_tokens
    assert shapes.num_tokens == num_tokens < shapes.vocab_size and shapes.vision_tokens is None
    wholes = records_of(exact)
    for sample_id, record in records_of(kept).items():
        whole, found = np.asarray(wholes[sample_id].logits, np.float64), record.logits
        assert isinstance(found, TruncatedLogits) and whole.shape[1] == shapes.vocab_size
        assert (np.diff(found.offsets) == num_tokens).all() and found.ids.max() == num_tokens - 1
        logprobs = whole[:, :num_tokens] - np.log(np.exp(whole[:, :num_tokens]).sum(axis=1, keepdims=True))
        rows = np.repeat(np.arange(len(whole)), np.diff(found.offsets))
        np.testing.assert_allclose(found.logprobs, logprobs[rows, found.ids], rtol=2e-3, atol=2e-3)


def test_what_a_family_cannot_do_is_one_line(family_job: FamilyJob) -> None:
    with pytest.raises(InputError, match=r"this family has no stem: store the targets .*qwen3_vl") as stopped:
        dump(family_job("qwen3_vl", attention="stem"))
    assert "\n" not in str(stopped.value)
    with pytest.raises(InputError, match=r"template 'v1', but .* has its own chat template"):
        dump(replace(family_job("smolvlm"), template="v1"))


def test_what_to_know_of_a_template_is_said_once_before_the_run(family_job: FamilyJob, tmp_path: Path) -> None:
    heard: list[str] = []
    job = family_job("llava", control=DumpControl(notice=heard.append))
    dump(job)
    warnings: list[Any] = [line for line in heard if line.startswith("chat template: ")]
    assert len(warnings) == 2 and "no end-of-turn token" in warnings[0] and heard[2].startswith("device cpu")
