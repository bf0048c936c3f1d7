"""Store, student and settings that do not fit are refused before the first step, in one line with both values."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.storage import Codecs, LogitsCodec
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.trainer import train
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation

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


def test_a_tokenizer_that_gives_other_ids(
    dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path, student_builder: MobileVLMPreparation
) -> None:
    """Whatever the tokenizer files' hashes say: the same texts must become the same ids."""
    same = student_builder.tokenizer.probe_ids()
    store = dump(tmp_path / "same", v1_samples[:1], fingerprint={"tokenizer_probe": json.dumps(same)})
    job = make_job(store)
    assert len(open_samples(job, job.open_student())) == 1
    text, ids = next(iter(same.items()))
    other = {**same, text: [*ids, 29871]}
    store = dump(tmp_path / "other", v1_samples[:1], fingerprint={"tokenizer_probe": json.dumps(other)})
    refused(make_job(store), rf"tokenizer\.model: {re.escape(repr(text))} becomes .*29871.* in the store")


def test_vocabulary(dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path) -> None:
    codecs = Codecs(logits=LogitsCodec(kind="topk", top_k=4))
    store = dump(tmp_path / "store", v1_samples[:1], codecs=codecs, vocab_size=600)
    refused(make_job(store), "the teacher's vocab_size is 600, the student's 512")


@pytest.mark.parametrize(
    ("key", "term"),
    [("attention", "attention"), ("vision_top", "vision_top"), ("vision_all", "vision_all"), ("logits", "logit")],
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


NUCLEUS = {"kind": "nucleus", "p": 0.9, "min_entries": 1, "max_entries": 64}


@pytest.mark.parametrize(
    ("logits", "losses", "named"),
    [
        (NUCLEUS, {"temperature": 2.0}, r"losses\.temperature is 2\.0, but store .* keeps logits 'nucleus'"),
        (
            {"kind": "sampled", "num_draws": 9},
            {},
            r"losses\.logit_divergence is 'reverse_kl', but store .* keeps logits 'sampled'.*set it to 'forward_kl'",
        ),
        (
            {"kind": "sampled", "num_draws": 9},
            {"temperature": 2.0},
            r"logit_divergence is 'reverse_kl'.*; losses\.temperature is 2\.0, .* 'sampled'",
        ),
    ],
)
def test_losses_that_the_stored_logits_cannot_give(
    logits: Any, losses: Any, named: str, dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    store = dump(tmp_path / "store", v1_samples[:1], codecs=Codecs(logits=LogitsCodec(**logits)))
    refused(make_job(store, losses=losses), named)
    # Without the logit loss it does not matter what the logits are.
    assert train(make_job(store, losses={**losses, "logit": 0.0}, steps=1, micro_batch=1)).step == 1


def test_image_folder_where_the_store_only_refers_to_images(exact_store: Path, make_job: MakeJob) -> None:
    refused(make_job(exact_store, images=None), r"inputs 'reference'.*data\.images is missing.*'embed'")


def test_lm_head_that_is_damaged(dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path) -> None:
    store = dump(tmp_path / "store", v1_samples[:1], codecs=Codecs(logits=LogitsCodec(kind="hidden")))
    head = store / "attachments" / "lm_head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(data)
    refused(make_job(store), r"lm_head\.safetensors: sha256 is")
    head.unlink()
    refused(make_job(store), r"lm_head\.safetensors")


def test_samples_longer_than_max_tokens(exact_store: Path, make_job: MakeJob) -> None:
    refused(make_job(exact_store, max_tokens=362), "longest sample has 363 tokens, max_tokens is 362")
    job = make_job(exact_store, max_tokens=363)
    assert len(open_samples(job, job.open_student())) == 4


def test_global_batch_that_does_not_divide(exact_store: Path, make_job: MakeJob) -> None:
    refused(
        make_job(exact_store, micro_batch=2, global_batch=3), "global_batch 3 is not a multiple of micro_batch 2 x 1"
    )


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
