"""Truncation to the most probable tokens, and focus tokens, against dense formulas in float64."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignkd.storage import TruncatedLogits
from alignkd.teacher_dump.targets.logits.truncation import keep_nucleus, keep_top_k, truncated_logits
from alignkd.vlm.attention.focus import focus_scores, vision_top_index


def in_csr(table: dict[str, Tensor]) -> TruncatedLogits:
    return truncated_logits({name: values.numpy() for name, values in table.items()})


@given(st.integers(0, 5), st.integers(2, 40), st.integers(1, 50), st.floats(0.1, 12.0), st.integers(0, 10**6))
def test_entries_and_tail_are_the_distribution(num: int, vocab: int, top_k: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, vocab, generator=generator) * scale
    labels = torch.randint(vocab, (num,), generator=generator)
    kept = in_csr(keep_top_k(logits, labels, top_k))
    dense = logits.double().log_softmax(-1).numpy()
    for position in range(num):
        ids = kept.ids[kept.offsets[position] : kept.offsets[position + 1]]
        logprobs = kept.logprobs[kept.offsets[position] : kept.offsets[position + 1]]
        assert len(set(ids.tolist())) == len(ids) and int(labels[position]) in ids
        assert min(top_k, vocab) <= len(ids) <= min(top_k + 1, vocab)
        np.testing.assert_allclose(logprobs, dense[position, ids], rtol=1e-5, atol=1e-5)
        tail = np.delete(np.exp(dense[position]), ids).sum()
        np.testing.assert_allclose(np.exp(kept.tail_logmass[position].astype(np.float64)), tail, rtol=1e-4, atol=1e-30)
        left_out = np.delete(dense[position], ids)
        most_probable_kept = np.sort(dense[position, ids])[::-1][: min(top_k, vocab)]
        assert not left_out.size or left_out.max() <= most_probable_kept[-1] + 1e-5


def test_everything_kept_leaves_no_tail() -> None:
    kept = in_csr(keep_top_k(torch.randn(3, 7), torch.tensor([0, 1, 2]), 7))
    assert np.isneginf(kept.tail_logmass).all() and len(kept.ids) == 21


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 30), st.integers(0, 1000))
def test_focus_is_equation_2(heads: int, queries: int, tokens: int, seed: int) -> None:
    attention = torch.rand(heads, queries, tokens, generator=torch.Generator().manual_seed(seed))
    by_hand = [sum(float(attention[:, q, p].mean()) for q in range(queries)) for p in range(tokens)]
    np.testing.assert_allclose(focus_scores(attention).numpy(), by_hand, rtol=1e-5)
    chosen = vision_top_index(attention).tolist()
    assert len(chosen) == min(16, tokens) == len(set(chosen))
    scores = focus_scores(attention)
    assert scores[chosen].tolist() == sorted(scores.tolist(), reverse=True)[: len(chosen)]


@given(
    st.integers(0, 5),
    st.integers(2, 40),
    st.floats(0.01, 1.0),
    st.integers(1, 50),
    st.integers(0, 50),
    st.floats(0.1, 12.0),
    st.integers(0, 10**6),
)
def test_nucleus_is_the_smallest_set_of_its_mass(
    num: int, vocab: int, p: float, least: int, more: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, vocab, generator=generator) * scale
    labels = torch.randint(vocab, (num,), generator=generator)
    kept = in_csr(keep_nucleus(logits, labels, p=p, min_entries=least, max_entries=least + more))
    dense = logits.double().log_softmax(-1).numpy()
    for position in range(num):
        entries = slice(int(kept.offsets[position]), int(kept.offsets[position + 1]))
        ids, row = kept.ids[entries], dense[position]
        assert len(set(ids.tolist())) == len(ids) and int(labels[position]) in ids
        np.testing.assert_allclose(kept.logprobs[entries], row[ids], rtol=1e-5, atol=1e-5)
        assert (np.diff(kept.logprobs[entries]) <= 0).all()
        tail = np.delete(np.exp(row), ids).sum()
        np.testing.assert_allclose(np.exp(kept.tail_logmass[position].astype(np.float64)), tail, rtol=1e-4, atol=1e-30)
        # brute force: the most probable tokens one by one until their mass is p, within the bounds
        mass = np.cumsum(np.sort(np.exp(row))[::-1])
        fewest, most = (
            np.clip(np.count_nonzero(mass < p + slack) + 1, min(least, vocab), min(least + more, vocab))
            for slack in (-1e-6, 1e-6)  # log-probabilities are float32
        )
        label_last = row[ids[-1]] if ids[-1] == labels[position] else None
        assert fewest <= len(ids) <= most + (label_last is not None)
        chosen = len(ids) - (len(ids) > most)
        np.testing.assert_allclose(np.exp(row[ids[:chosen]]).sum(), mass[chosen - 1], rtol=1e-4)


def test_ties_are_kept_by_id_and_the_label_comes_last() -> None:
    logits = torch.zeros(1, 8)
    kept = in_csr(keep_nucleus(logits, torch.tensor([6]), p=0.25, min_entries=1, max_entries=8))
    assert kept.ids.tolist() == [0, 1, 6]
    sure = in_csr(
        keep_nucleus(torch.tensor([[0.0, 30.0, 0.0]]), torch.tensor([1]), p=0.98, min_entries=1, max_entries=3)
    )
    assert sure.ids.tolist() == [1]
    floor = in_csr(
        keep_nucleus(torch.tensor([[0.0, 30.0, 5.0]]), torch.tensor([1]), p=0.98, min_entries=2, max_entries=3)
    )
    assert floor.ids.tolist() == [1, 2]
