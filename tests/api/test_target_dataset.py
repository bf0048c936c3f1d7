"""Decoded targets for trainers of other people."""

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import alignkd
from alignkd.storage import Codecs, LogitsCodec

WriteStore = Callable[..., Path]
MakeManifest = Callable[..., Any]
P, HT, DT, K = 5, 2, 6, 3


def codecs(logits: dict[str, Any], **others: Any) -> Codecs:
    compact = {"attention": "sqrt_u8", "vision_top": "from_all", "vision_all": "int8_channel"}
    return Codecs(**{**compact, **others}, logits=LogitsCodec(**logits))


def test_every_record_has_the_documented_shapes(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    path = write_store(tmp_path / "s", make_manifest(codecs=codecs({"kind": "topk", "top_k": 4})))
    dataset, reader = alignkd.TargetDataset(path), alignkd.open_store(path)
    assert len(dataset) == len(reader) == 10
    seen = set()
    for sample, record in zip((dataset[place] for place in range(10)), reader, strict=True):
        k, Q, N, T = len(sample["images"]), *(len(sample[n]) for n in POSITIONAL)
        seen.add(k)
        shapes = {
            "tqv_attention": (k, Q, HT, P),
            "vision_embeddings": (k, P, DT),
            "vision_top_index": (K * k,),
            "vision_top_embeddings": (K * k, DT),
            "labels": (T,),
            "entry_offsets": (N + 1,),
            "tail_logmass": (N,),
            "entry_logprobs": (len(sample["entry_ids"]),),
        }
        assert {name: tuple(sample[name].shape) for name in shapes} == shapes
        floats = {
            name for name, value in sample.items() if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
        assert floats == {
            "tqv_attention",
            "vision_embeddings",
            "vision_top_embeddings",
            "entry_logprobs",
            "tail_logmass",
        }
        assert all(sample[name].dtype == torch.float32 for name in floats)
        assert (sample["id"], sample["index"], sample["conversations"]) == (
            record.id,
            record.index,
            record.conversations,
        )
        np.testing.assert_array_equal(sample["entry_ids"], record.logits.ids)  # type: ignore[union-attr]
        if k:
            attention = record.attention_float32
            assert attention is not None and record.vision_embeddings_float32 is not None
            np.testing.assert_array_equal(sample["tqv_attention"].ravel(), attention.ravel())
            np.testing.assert_array_equal(
                sample["vision_top_embeddings"], sample["vision_embeddings"].reshape(-1, DT)[sample["vision_top_index"]]
            )
    assert seen == {0, 1}


POSITIONAL = ("tqv_query_positions", "supervised_positions", "input_ids")


def test_images_are_an_axis_of_their_own(dumped: Path) -> None:
    dataset, reader = alignkd.TargetDataset(dumped / "store-zarr"), alignkd.open_store(dumped / "store-zarr")
    P, Ht, Dt = 144, 8, 128
    seen = set()
    for sample, record in zip((dataset[place] for place in range(len(dataset))), reader, strict=True):
        k, Q = len(sample["images"]), len(sample["tqv_query_positions"])
        seen.add(k)
        assert sample["tqv_attention"].shape == (k, Q, Ht, P) and sample["vision_embeddings"].shape == (k, P, Dt)
        if not k:
            continue
        # the focus: the 16 vision tokens with the most attention, over all images
        scores = sample["tqv_attention"].mean(2).sum(1).ravel()
        assert scores[sample["vision_top_index"]].min() >= scores.sort(descending=True)[0][15] * 0.98
        top = sample["vision_embeddings"].reshape(-1, Dt)[sample["vision_top_index"]]
        torch.testing.assert_close(top, sample["vision_top_embeddings"])
        positions = torch.arange(P) + sample["vision_positions"].reshape(k, P)[:, :1]
        assert torch.equal(positions, sample["vision_positions"].reshape(k, P))
        assert record.attention_float32 is not None
        np.testing.assert_array_equal(sample["tqv_attention"].ravel(), record.attention_float32.ravel())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    ("logits", "keys"),
    [
        ({"kind": "full"}, {"logits"}),
        ({"kind": "hidden"}, {"hidden_states"}),
        ({"kind": "sampled", "num_draws": 9}, {"entry_ids", "entry_offsets", "entry_counts", "entropy"}),
        ({"kind": "none"}, set()),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_keys_follow_the_kind_of_logits(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, logits: dict[str, Any], keys: set[str]
) -> None:
    path = write_store(tmp_path / "s", make_manifest(codecs=codecs(logits, attention_pairs="vqv", vision_top="none")))
    samples = [alignkd.TargetDataset(path)[place] for place in range(10)]
    others = {
        *("id", "index", "images", "conversations", "input_ids", "labels", "tokens_of_image", "vision_positions"),
        *("tqv_query_positions", "supervised_positions", "vqv_attention", "vision_embeddings"),
    }
    assert all(sample.keys() == keys | others for sample in samples)
    for sample in samples:
        assert sample["vqv_attention"].shape == (len(sample["images"]), len(sample["vision_positions"]), HT, P)
        if "hidden_states" in keys:
            assert sample["hidden_states"].dtype == torch.float32
            assert sample["hidden_states"].shape == (len(sample["supervised_positions"]), DT)


def test_only_what_is_asked_for_is_decoded(store: Path) -> None:
    sample = alignkd.TargetDataset(store, targets=["vision_top"])[0]
    assert "vision_top_embeddings" in sample
    assert not {"tqv_attention", "vision_embeddings", "entry_ids"} & sample.keys()
    with pytest.raises(alignkd.AlignkdError, match="targets has 'logit', expected some of attention, "):
        alignkd.TargetDataset(store, targets=["logit"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_workers_give_the_same_samples(store: Path, method: str) -> None:
    dataset = alignkd.TargetDataset(store)
    loader = DataLoader(
        dataset,
        batch_size=4,
        collate_fn=list,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    samples = [sample for batch in loader for sample in batch]
    assert len(samples) == 10
    for place, sample in enumerate(samples):
        for name, value in dataset[place].items():
            same = torch.equal(value, sample[name]) if isinstance(value, torch.Tensor) else value == sample[name]
            assert same, name


def test_samples_are_memory_of_their_own(store: Path) -> None:
    dataset = alignkd.TargetDataset(store)
    first = dataset[0]
    copies = {name: value.clone() for name, value in first.items() if isinstance(value, torch.Tensor)}
    for place in range(10):
        for value in dataset[place].values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    assert all(torch.equal(first[name], value) for name, value in copies.items())
    again = pickle.loads(pickle.dumps(dataset))
    assert again[0]["id"] == first["id"]


def test_targets_that_the_store_does_not_keep_are_refused(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    path = write_store(tmp_path / "s", make_manifest(codecs=codecs({"kind": "topk", "top_k": 4}, attention="none")))
    for targets, message in (
        (["attention"], "does not keep the target 'attention', it has logits, vision_all, vision_top; leave it out"),
        (["attentoin"], "targets has 'attentoin', expected some of attention, vision_top"),
        ("logits", "targets has 'logits', expected some of"),
    ):
        with pytest.raises(alignkd.AlignkdError, match=message):
            alignkd.TargetDataset(path, targets=targets)
    dataset = alignkd.TargetDataset(path)
    assert repr(dataset) == f"TargetDataset('{path}', 10 records, logits, vision_all, vision_top)"
    assert "tqv_attention" not in dataset[0] and "vision_embeddings" in dataset[0]
