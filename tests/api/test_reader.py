"""An opened store as a sequence of records that people can look at."""

import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import alignkd
from alignkd.storage import Codecs, LogitsCodec, open_writer
from alignkd.storage.read.logprobs import answers

COMPACT = {"attention": "sqrt_u8", "vision_top": "from_all", "vision_all": "int8_channel"}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float32"},
    "topk": {"top_k": 5},
    "nucleus": {"p": 0.9, "min_entries": 2, "max_entries": 20},
    "sampled": {"num_draws": 50},
    "hidden": {"dtype": "float32"},
    "none": {},
}
WriteStore = Callable[..., Path]
MakeManifest = Callable[..., Any]


def compact(kind: str) -> Codecs:
    return Codecs(**COMPACT, logits=LogitsCodec(kind=kind, **KINDS[kind]))  # type: ignore[arg-type]


def test_a_store_is_a_sequence(store: Path) -> None:
    reader = alignkd.open_store(store)
    assert isinstance(reader, Sequence) and len(reader) == 10
    indices = [record.index for record in reader]
    assert sorted(indices) == list(range(10))
    assert reader[-1].index == indices[-1] and reader[np.int64(-10)].index == indices[0]
    assert [record.index for record in reader[2:8:3]] == indices[2:8:3]
    assert [record.index for record in reader[-2:]] == indices[-2:] and reader[10:] == []
    assert [record.index for record in reversed(reader)] == indices[::-1]
    for wrong in (1.0, "1", None):
        with pytest.raises(TypeError):
            reader[wrong]  # type: ignore[call-overload]


def test_reprs_show_shapes_and_no_array(tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore) -> None:
    manifest = make_manifest(codecs=compact("nucleus"), inputs="embed")
    reader = alignkd.open_store(write_store(tmp_path / "s", manifest))
    assert repr(reader) == f"StoreReader('{tmp_path}/s', 10 records, 3 of 3 shards, zarr)"
    record = next(record for record in reader if record.index == 6)
    Q = len(record.tqv_query_positions)
    shown = repr(record)
    for part in (
        "id='sample-6'",
        f"input_ids=int32[{len(record.input_ids)}]",
        f"attention=EncodedArray('sqrt_u8', values=uint8[1, {Q}, 2, 5], scale=float16[1, {Q}, 2])",
        "vision_embeddings=(EncodedArray('int8_channel', values=int8[5, 6], scale=float16[6]),)",
        "logits=TruncatedLogits(\n",
        "vision_top_index=uint16[3]",
        "conversations=2 turns",
        f"{len(b'scenes/3.png')} bytes",
    ):
        assert part in shown
    assert "array(" not in shown and len(shown) < 1500
    for text in (repr(manifest), str(manifest)):
        assert "10 samples in 3 shards of 4, seed 1" in text and "attention=sqrt_u8" in text and "p=0.9" in text


def test_a_record_gives_floats_beside_what_is_stored(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    reader = alignkd.open_store(write_store(tmp_path / "s", make_manifest(codecs=compact("topk"))))
    record = next(record for record in reader if record.index == 6)
    assert record.attention_float32 is not None and record.vision_embeddings_float32 is not None
    q, scale = (record.attention.parts[part].astype(np.float32) for part in ("", "scale"))  # type: ignore[union-attr]
    np.testing.assert_allclose(record.attention_float32, scale[..., None] * (q / 255) ** 2, rtol=1e-6)
    assert record.attention_float32.dtype == record.vision_embeddings_float32.dtype == np.float32
    assert record.tqv_attention is not None and record.attention_pairs == "tqv"
    np.testing.assert_array_equal(record.tqv_attention, record.attention_float32[0].transpose(1, 0, 2))
    top = record.vision_embeddings_float32[record.vision_top_index]
    np.testing.assert_array_equal(record.vision_top_embeddings_float32, top)
    text_only = next(record for record in reader if not record.has_image)
    assert text_only.attention_float32 is None and text_only.vision_top_embeddings_float32 is None
    pairs = compact("topk").model_copy(update={"attention_pairs": "vqv"})
    others = alignkd.open_store(write_store(tmp_path / "o", make_manifest(codecs=pairs)))
    with pytest.raises(alignkd.AlignkdError, match="of the pairs vqv, tqv_attention needs tqv; use attention_float32"):
        _ = others[0].tqv_attention


@pytest.mark.parametrize("kind", ["full", "topk", "nucleus", "sampled"])
def test_logprobs_of_each_kind(tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, kind: str) -> None:
    reader = alignkd.open_store(write_store(tmp_path / "s", make_manifest(codecs=compact(kind))))
    found, record, V = reader.logprobs(3), reader[3], 40
    N = len(record.supervised_positions)
    dense = found.dense()
    assert (dense.dtype, dense.shape, found.kind) == (np.float32, (N, V), kind)
    np.testing.assert_allclose(np.exp(dense.astype(np.float64)).sum(1), 1, atol=5e-3)
    labels = record.labels[1:][record.labels[1:] != -100]
    np.testing.assert_allclose(found.of(labels), dense[np.arange(N), labels], rtol=1e-5)
    assert isinstance(found, alignkd.DenseLogprobs if kind == "full" else alignkd.SparseLogprobs)
    assert "array(" not in repr(found)
    if isinstance(found, alignkd.DenseLogprobs):
        wide = record.logits.astype(np.float64)  # type: ignore[union-attr]
        np.testing.assert_allclose(dense, wide - np.log(np.exp(wide).sum(1, keepdims=True)), rtol=1e-5)
        return
    assert found.offsets[-1] == len(found.ids) == len(found.logprobs)
    positions = np.repeat(np.arange(N), np.diff(found.offsets))
    sums = np.bincount(positions, np.exp(found.logprobs.astype(np.float64)), minlength=N)
    if kind == "sampled":
        assert found.tail_logmass is None and found.entropy is not None and found.entropy.shape == (N,)
        np.testing.assert_allclose(sums, 1, atol=1e-6)  # shares of the draws
        np.testing.assert_allclose(np.exp(found.logprobs) * 50, record.logits.counts, rtol=1e-5)  # type: ignore[union-attr]
    else:
        assert found.entropy is None and found.tail_logmass is not None
        np.testing.assert_allclose(sums + np.exp(found.tail_logmass), 1, atol=5e-3)
        expected = answers(record.logits, positions, found.ids, V)  # type: ignore[arg-type]
        assert expected.kept.all()
        np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=1e-6)


def test_logprobs_of_hidden_states_go_through_the_attached_head(
    tmp_path: Path, make_manifest: MakeManifest, make_record: Callable[..., Any]
) -> None:
    import hashlib

    weight = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    head = save({"lm_head.weight": weight})
    sha256 = {"lm_head.safetensors": hashlib.sha256(head).hexdigest()}
    manifest = make_manifest(codecs=compact("hidden"), attachments=sha256)
    writer = open_writer(tmp_path / "s", manifest, {"lm_head.safetensors": head})
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                sink.append(make_record(manifest, index))
            sink.commit()
    reader = alignkd.open_store(tmp_path / "s")
    found, record = reader.logprobs(2), reader[2]
    logits = record.logits.states.astype(np.float64) @ weight.T.astype(np.float64)  # type: ignore[union-attr]
    assert isinstance(found, alignkd.DenseLogprobs)
    np.testing.assert_allclose(
        found.values, logits - np.log(np.exp(logits).sum(1, keepdims=True)), rtol=1e-4, atol=1e-5
    )
    copy = pickle.loads(pickle.dumps(reader))
    assert len(pickle.dumps(reader)) < 20_000  # the mapped matrix is opened again, not copied
    np.testing.assert_array_equal(copy.logprobs(2).dense(), found.values)


def test_a_store_without_a_distribution_is_one_line(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    for kind, message in (("none", "logits.kind is none"), ("hidden", "lm_head.safetensors is not attached")):
        reader = alignkd.open_store(write_store(tmp_path / kind, make_manifest(codecs=compact(kind))))
        with pytest.raises(alignkd.AlignkdError, match=message):
            reader.logprobs(0)


@pytest.mark.parametrize("kind", ["full", "topk", "nucleus", "sampled"])
def test_ids_that_are_no_tokens_are_refused(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, kind: str
) -> None:
    reader = alignkd.open_store(write_store(tmp_path / "s", make_manifest(codecs=compact(kind))))
    found, V = reader.logprobs(3), 40
    N = len(reader[3].supervised_positions)
    for ids, message in (
        (np.full(N, -100), "ids contain -100, expected token ids from 0 to 39"),
        (np.full(N, V), "ids contain 40, expected token ids from 0 to 39"),
        (np.zeros(N), f"ids are float64[{N}], expected {N} integers, one per position"),
        (np.zeros(N + 1, np.int64), f"ids are int64[{N + 1}], expected {N} integers, one per position"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            found.of(ids)
