"""What checksums cannot see: targets of other positions, attention that is no probability."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from alignkd.storage import (
    Codecs,
    EncodedArray,
    HiddenStates,
    LogitsCodec,
    Manifest,
    Record,
    SampledLogits,
    Shapes,
    TruncatedLogits,
    open_writer,
    verify_store,
)
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.read.lm_head import LM_HEAD_FILE, LM_HEAD_KEY
from alignkd.storage.tools.verify.plausibility import PlausibilityReport, check_plausibility

V = 40
RNG = np.random.default_rng(5)
# any full-rank matrix does: states are solved for from the logits that are wanted
LM_HEAD = RNG.normal(size=(V, V)).astype(np.float32)
KINDS = {
    "full": LogitsCodec(kind="full", dtype="float16"),
    "topk": LogitsCodec(kind="topk", top_k=3, dtype="float16"),
    "nucleus": LogitsCodec(kind="nucleus", p=0.9, min_entries=2, max_entries=20, dtype="float32"),
    "hidden": LogitsCodec(kind="hidden", dtype="int8_group"),
    "sampled": LogitsCodec(kind="sampled", num_draws=20),
}
WriteTold = Callable[..., Path]


@pytest.fixture
def write_told(tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any) -> WriteTold:
    """write_told(kind, ...): a store whose teacher tells the labels, `shift` positions too late."""

    def write(
        kind: str,
        *,
        shift: int = 0,
        strength: float = 8.0,
        samples: int = 12,
        mass: float = 0.9,
        codec: str = "float32",
    ) -> Path:
        head = save({LM_HEAD_KEY: LM_HEAD})
        hidden = {"attachments": {LM_HEAD_FILE: hashlib.sha256(head).hexdigest()}} if kind == "hidden" else {}
        manifest = make_manifest(
            codecs=Codecs(logits=KINDS[kind], attention=codec),
            shapes=Shapes(num_heads=2, hidden_size=V, vision_tokens=5, vocab_size=V, vision_top_tokens=3),
            num_samples=samples,
            shard_size=samples,
            **hidden,
        )
        path = tmp_path / "store"
        open_writer(path, manifest, {LM_HEAD_FILE: head} if hidden else None)
        return write_store(
            path,
            manifest,
            record_of=lambda index: told(make_record(manifest, index), manifest, shift, strength, mass),
        )

    return write


def told(record: Record, manifest: Manifest, shift: int, strength: float, mass: float) -> Record:
    rng = np.random.default_rng(record.index)
    labels = record.labels[1:][record.labels[1:] != -100]
    logits = rng.normal(size=(len(labels), V))
    logits[np.arange(len(labels)), np.roll(labels, -shift)] += strength
    changes: dict[str, Any] = {"logits": as_kind(logits, labels, manifest.codecs.logits, rng)}
    if record.attention is not None:
        weights = rng.gamma(1.0, size=record.attention.shape)
        floats = (mass * weights / weights.sum(-1, keepdims=True)).astype(np.float32)
        codec = manifest.codecs.attention
        changes["attention"] = floats.astype(codec) if codec.startswith("float") else EncodedArray.encode(codec, floats)
    return Record(**{**record.__dict__, **changes})


def as_kind(logits: np.ndarray, labels: np.ndarray, codec: LogitsCodec, rng: np.random.Generator) -> Any:
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    if codec.kind == "full":
        return logits.astype(np.float16)
    if codec.kind == "hidden":
        states = np.linalg.solve(LM_HEAD.astype(np.float64), logits.T).T.astype(np.float32)
        return HiddenStates(states=EncodedArray.encode("int8_group", states))
    if codec.kind == "sampled":
        draws = [rng.multinomial(20, np.exp(row)) for row in logprobs]
        return SampledLogits(
            ids=np.concatenate([np.flatnonzero(row) for row in draws]).astype(np.uint16),
            counts=np.concatenate([row[row > 0] for row in draws]).astype(np.uint8),
            offsets=np.cumsum([0, *(np.count_nonzero(row) for row in draws)]).astype(np.int64),
            entropy=-(np.exp(logprobs) * logprobs).sum(1).astype(np.float32),
        )
    order = np.argsort(-logprobs)
    mass = np.cumsum(np.exp(np.take_along_axis(logprobs, order, 1)), 1)
    counts = np.full(len(labels), 3) if codec.kind == "topk" else np.clip((mass < 0.9).sum(1) + 1, 2, 20)
    kept = [np.union1d(row[:count], [label]) for row, count, label in zip(order, counts, labels, strict=True)]
    tails = [1 - np.exp(row[ids]).sum() for row, ids in zip(logprobs, kept, strict=True)]
    return TruncatedLogits(
        ids=np.concatenate(kept).astype(np.uint16),
        logprobs=np.concatenate([row[ids] for row, ids in zip(logprobs, kept, strict=True)]).astype(codec.dtype),
        offsets=np.cumsum([0, *map(len, kept)]).astype(np.int64),
        tail_logmass=np.log(np.maximum(tails, 1e-30)).astype(np.float32),
    )


def look(store: Path, **options: Any) -> PlausibilityReport:
    assert verify_store(store, deep=True).ok  # what is wrong below is nothing that checksums could see
    return check_plausibility(LocalFiles(store), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shift", "beside"), [(0, None), (1, "next"), (-1, "previous")])
def test_targets_off_by_one_are_caught_in_every_kind(
    write_told: WriteTold, kind: str, shift: int, beside: str | None
) -> None:
    report = look(write_told(kind, shift=shift))
    labels = report.labels
    assert labels.perplexity and labels.perplexity_next and labels.perplexity_previous
    if beside is None:
        assert labels.outcome == "ok" and not report.problems and labels.labels_not_kept == 0
        assert labels.perplexity < 2 < 10 < min(labels.perplexity_next, labels.perplexity_previous)
    else:
        assert labels.outcome == "shifted" and f"for the label of the {beside} position" in report.problems[0].message
        assert "shifted by one" in report.problems[0].message


def test_one_bad_shard_is_named(tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any) -> None:
    manifest = make_manifest(codecs=Codecs(logits=KINDS["full"], attention="none"), num_samples=40, shard_size=20)
    bad = set(open_writer(tmp_path, manifest).planned_samples(1).tolist())
    store = write_store(
        tmp_path, manifest, record_of=lambda i: told(make_record(manifest, i), manifest, int(i in bad), 8.0, 0.9)
    )
    report = look(store)
    assert [problem.shard for problem in report.problems] == [1]
    assert not look(store, skip=[1]).problems


def test_a_sure_teacher_that_never_says_the_label_is_implausible(write_told: WriteTold) -> None:
    report = look(write_told("full", shift=7))
    assert report.labels.outcome == "implausible" and "do not fit the labels" in report.problems[0].message


def test_a_vague_teacher_has_no_opinion_and_little_data_none_either(write_told: WriteTold, tmp_path: Path) -> None:
    assert look(write_told("full", strength=0.0)).labels.outcome == "no opinion"
    (tmp_path / "store").rename(tmp_path / "vague")
    few = look(write_told("full", shift=1, samples=2))
    assert few.labels.outcome == "not enough data" and not few.problems


def test_a_teacher_that_dislikes_labels_predicts_no_neighbour_by_that(write_told: WriteTold) -> None:
    labels = look(write_told("full", strength=-4.0, samples=24)).labels
    assert labels.lead_next and labels.lead_next < -4 and labels.outcome == "no opinion"


def test_entries_without_the_label_are_named_however_few(write_told: WriteTold, make_record: Any) -> None:
    def without_label(record: Record) -> Record:
        logits = record.logits
        assert isinstance(logits, TruncatedLogits)
        labels = record.labels[1:][record.labels[1:] != -100]
        ids = logits.ids.copy()
        first = slice(0, int(logits.offsets[1]))
        ids[first] = [token for token in range(V) if token != labels[0]][: logits.offsets[1]]
        return Record(**{**record.__dict__, "logits": TruncatedLogits(**{**logits.__dict__, "ids": ids})})

    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.tools.verify.label_shift import LabelScores

    reader = StoreReader(write_told("topk", samples=2))
    scores = LabelScores(reader.manifest)
    scores.add(reader[0], reader[0].logits)  # type: ignore[arg-type]
    assert not scores.problems()
    bad = without_label(reader[0])
    scores.add(bad, bad.logits)  # type: ignore[arg-type]
    assert "lack the label at 1 of" in scores.problems()[0]


@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16", "sqrt_u8"])
def test_attention_sums_are_judged_with_the_codec_bound(write_told: WriteTold, tmp_path: Path, codec: str) -> None:
    whole = look(write_told("full", mass=1.0, codec=codec))
    assert not whole.problems and whole.attention.largest_sum == pytest.approx(1, abs=0.02)
    (tmp_path / "store").rename(tmp_path / "whole")
    too_much = look(write_told("full", mass=1.1, codec=codec))
    assert "expected at most 1" in too_much.problems[0].message and too_much.attention.above_one > 10


def test_negative_attention_is_named(write_told: WriteTold) -> None:
    report = look(write_told("full", mass=-0.5))
    assert report.attention.negative and "negative values" in report.problems[0].message
