"""One distribution kept in several ways answers the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignkd.storage import CorruptStoreError, HiddenStates, SampledLogits, TruncatedLogits
from alignkd.storage.read.lm_head import BLOCK_ROWS, LM_HEAD_KEY, LmHead
from alignkd.storage.read.logprobs import answers, distribution_of, entropies

N, V, Dt = 7, 40, 6


@pytest.fixture
def logits() -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(N, V)) * 3).astype(np.float32)


def exact(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def truncated(logprobs: np.ndarray, keep: int) -> TruncatedLogits:
    kept = np.argsort(-logprobs)[:, :keep]
    values = np.take_along_axis(logprobs, kept, 1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1 - np.exp(values).sum(1), 0) if keep < V else np.zeros(N))
    return TruncatedLogits(
        ids=kept.ravel().astype(np.uint16),
        logprobs=values.ravel().astype(np.float32),
        offsets=np.arange(0, N * keep + 1, keep),
        tail_logmass=tail.astype(np.float32),
    )


def test_every_entry_kept_is_as_good_as_all_logits(logits: np.ndarray) -> None:
    positions, ids = np.divmod(np.arange(N * V), V)
    dense, kept = answers(logits, positions, ids, V), answers(truncated(exact(logits), V), positions, ids, V)
    assert dense.kept.all() and kept.kept.all()
    np.testing.assert_allclose(dense.logprobs, exact(logits).ravel(), rtol=1e-6)
    np.testing.assert_allclose(kept.logprobs, dense.logprobs, rtol=1e-5)
    np.testing.assert_allclose(entropies(truncated(exact(logits), V), V), entropies(logits, V), rtol=1e-5)


def test_what_is_not_kept_shares_the_tail(logits: np.ndarray) -> None:
    logprobs, keep = exact(logits), 5
    found = truncated(logprobs, keep)
    all_ids = answers(found, np.repeat(np.arange(N), V), np.tile(np.arange(V), N), V)
    mass = np.exp(all_ids.logprobs).reshape(N, V).sum(1)
    np.testing.assert_allclose(mass, 1, atol=1e-5)  # a distribution again
    assert all_ids.kept.sum() == N * keep
    np.testing.assert_allclose(
        entropies(found, V), -(np.exp(all_ids.logprobs) * all_ids.logprobs).reshape(N, V).sum(1), rtol=1e-4
    )
    assert (entropies(found, V) >= entropies(logits, V) - 1e-5).all()


def test_draws_are_a_distribution_too(logits: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    counts = np.stack([rng.multinomial(50, np.exp(row)) for row in exact(logits)])
    found = SampledLogits(
        ids=np.concatenate([np.flatnonzero(row) for row in counts]).astype(np.uint16),
        counts=counts[counts > 0].astype(np.uint8),
        offsets=np.cumsum([0, *(counts > 0).sum(1)]).astype(np.int64),
        entropy=entropies(logits, V).astype(np.float32),
    )
    told = answers(found, np.repeat(np.arange(N), V), np.tile(np.arange(V), N), V)
    np.testing.assert_array_equal(told.kept.reshape(N, V), counts > 0)
    np.testing.assert_allclose(np.exp(told.logprobs).reshape(N, V).sum(1), 1)
    np.testing.assert_allclose(entropies(found, V), entropies(logits, V), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_hidden_states_through_the_mapped_head(tmp_path: Path, make_manifest: Any, dtype: str) -> None:
    vocabulary = BLOCK_ROWS + 3  # more than one block, the last one short
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(vocabulary, Dt)).astype(np.float32)
    path = tmp_path / "lm_head.safetensors"
    if dtype == "BF16":
        weight = (weight.view(np.uint32) & 0xFFFF0000).view(np.float32)
        header = (
            f'{{"{LM_HEAD_KEY}":{{"dtype":"BF16","shape":[{vocabulary},{Dt}],"data_offsets":[0,{weight.size * 2}]}}}}'
        )
        bits = (weight.view(np.uint32) >> 16).astype("<u2").tobytes()
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bits)
    else:
        weight = weight.astype(np.float16).astype(np.float32) if dtype == "F16" else weight
        save_file({"other": weight[:1], LM_HEAD_KEY: weight.astype("f2" if dtype == "F16" else "f4")}, path)
    shapes = make_manifest().shapes.model_copy(update={"vocab_size": vocabulary, "hidden_size": Dt})
    head = LmHead(path, make_manifest(shapes=shapes))
    states = rng.normal(size=(N, Dt)).astype(np.float32)
    found = distribution_of(HiddenStates(states=states), head)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, states.astype(np.float64) @ weight.T.astype(np.float64), rtol=1e-4, atol=1e-5)
    with pytest.raises(CorruptStoreError, match=r"has shape \(2051, 6\), the store's teacher has \(40, 6\)"):
        LmHead(path, make_manifest())


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_head_that_is_none_is_one_line(tmp_path: Path, make_manifest: Any, content: bytes) -> None:
    path = tmp_path / "lm_head.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"not a safetensors file with lm_head\.weight"):
        LmHead(path, make_manifest())
