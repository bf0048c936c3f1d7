"""Store, student and settings that do not fit are refused before the first step, in one line with both values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage import Codecs, LogitsCodec
from student_train.adapters import Adapters
from student_train.job import TrainJob
from student_train.trainer import open_dataset, train

MakeJob = Callable[..., TrainJob]


def refused(job: TrainJob, match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        train(job)
    assert "\n" not in str(error.value)
    assert not (job.train.output / "metrics.jsonl").exists()


@pytest.mark.parametrize("part", ["tokenizer", "template", "image_processor", "vision_tokens"])
def test_fingerprints(part: str, dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path) -> None:
    store = dump(tmp_path / "store", v1_samples[:1], fingerprint={part: "of-somebody-else"})
    refused(make_job(store), rf"{part} is of-somebody-else in the store, .+ in the student")


def test_vocabulary(dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path) -> None:
    codecs = Codecs(logits=LogitsCodec(kind="topk", top_k=4))
    store = dump(tmp_path / "store", v1_samples[:1], codecs=codecs, vocab_size=600)
    refused(make_job(store), "the teacher's vocab_size is 600, the student's 512")


@pytest.mark.parametrize(
    ("key", "term"),
    [("attention", "attention"), ("vision_top", "vision_focus"), ("vision_all", "vision_all"), ("logits", "logit")],
)
def test_target_that_was_not_dumped(
    key: str, term: str, dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    none: Any = LogitsCodec(kind="none") if key == "logits" else "none"
    codecs = Codecs(**{"logits": LogitsCodec(kind="topk", top_k=4), key: none})
    store = dump(tmp_path / "store", v1_samples, codecs=codecs)
    refused(make_job(store), rf"losses\.{term} is .*codecs\.{key} none; set losses\.{term} to 0 or dump again")
    # Without that term the store is good enough.
    result = train(make_job(store, losses={term: 0.0}, steps=1))
    assert term not in result.metrics


def test_temperature_of_truncated_logits(dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path) -> None:
    codecs = Codecs(logits=LogitsCodec(kind="topk", top_k=4))
    store = dump(tmp_path / "store", v1_samples[:1], codecs=codecs)
    refused(
        make_job(store, losses={"temperature": 2.0}), r"losses\.temperature is 2\.0, but store .* keeps logits 'topk'"
    )


def test_samples_longer_than_max_tokens(exact_store: Path, make_job: MakeJob) -> None:
    refused(make_job(exact_store, max_tokens=362), "longest sample has 363 tokens, max_tokens is 362")
    assert len(open_dataset(make_job(exact_store, max_tokens=363))) == 4


def test_global_batch_that_does_not_divide(exact_store: Path, make_job: MakeJob) -> None:
    refused(make_job(exact_store, micro_batch=2, global_batch=3), "global_batch 3 is no multiple of micro_batch 2 x 1")


def test_adapters_of_another_pair(exact_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    refused(make_job(exact_store, adapters=tmp_path / "none.safetensors"), r"none\.safetensors: cannot be read")
    Adapters(heads=(8, 2), hidden_sizes=(128, 64)).save(tmp_path / "other.safetensors")
    refused(make_job(exact_store, adapters=tmp_path / "other.safetensors"), r"other\.safetensors: expected shapes")


def test_float16_where_it_cannot_be_computed(exact_store: Path, make_job: MakeJob) -> None:
    if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this machine computes in float16")
    refused(
        make_job(exact_store, dtype="float16"), r"dtype torch\.float16 is not supported on cpu; set dtype to float32"
    )
