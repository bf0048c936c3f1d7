"""The most probable tokens and the mass of the others, against dense formulas in float64 and against the GPU's way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignkd.teacher_dump.targets.logits import most_likely as module
from alignkd.teacher_dump.targets.logits.most_likely import MostLikely, most_likely_tokens
from alignkd.teacher_dump.targets.logits.most_likely_host import FEW, GROUP_SIZE, Enough
from alignkd.teacher_dump.targets.logits.truncation import keep_nucleus, keep_top_k, truncated_logits


def check(found: MostLikely, logits_NV: Tensor, labels_N: Tensor, count: int) -> None:
    """Each position by sorting, in float64."""
    dense_NV = logits_NV.double().log_softmax(-1).numpy()
    for row, values_V in enumerate(logits_NV.float().numpy()):
        by_hand = sorted(range(len(values_V)), key=lambda token: (-values_V[token], token))[:count]
        assert found.ids_NK[row].tolist() == by_hand
        np.testing.assert_allclose(found.logprobs_NK[row], dense_NV[row, by_hand], rtol=1e-6, atol=2e-6)
        label = int(labels_N[row])
        np.testing.assert_allclose(found.label_logprob_N[row], dense_NV[row, label], rtol=1e-6, atol=2e-6)
        others = np.delete(dense_NV[row], [*by_hand, label])
        expected = np.logaddexp.reduce(others) if others.size else -np.inf
        np.testing.assert_allclose(found.rest_logmass_N[row], expected, rtol=1e-6, atol=5e-6)


@given(
    st.integers(0, 5),
    st.integers(2, 200),
    st.integers(1, 60),
    st.sampled_from([0.1, 1.0, 12.0, 100.0]),
    st.sampled_from(["continuous", "half", "few values", "all equal"]),
    st.integers(0, 10**6),
)
def test_order_log_probabilities_and_rest(num: int, vocab: int, count: int, scale: float, kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, vocab, generator=generator) * scale
    logits = {
        "continuous": logits,
        "half": logits.bfloat16(),
        "few values": logits.div(scale).round().mul(scale / 2),  # 0 and -0 among them
        "all equal": torch.zeros_like(logits),
    }[kind]
    labels = torch.randint(vocab, (num,), generator=generator)
    check(most_likely_tokens(logits, labels, count), logits, labels, min(count, vocab))


def test_rows_are_the_same_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    together = most_likely_tokens(logits, labels, 20)
    monkeypatch.setattr(module, "CACHED_BYTES", 4 * 300 * 2)
    for name, values in vars(most_likely_tokens(logits, labels, 20)).items():
        assert torch.equal(values, getattr(together, name)), name


@given(st.integers(1, 4), st.integers(2, 300), st.integers(1, 60), st.floats(0.1, 30.0), st.integers(0, 10**6))
def test_a_gpu_finds_the_same(num: int, vocab: int, count: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(num)]).float() * (scale / vocab)
    labels, count = torch.randint(vocab, (num,), generator=generator), min(count, vocab)
    host, device = most_likely_tokens(logits, labels, count), module._on_device(logits, labels, count)
    assert torch.equal(host.ids_NK, device.ids_NK) and torch.equal(host.is_finite_N, device.is_finite_N)
    for name in ("logprobs_NK", "label_logprob_N", "rest_logmass_N"):
        torch.testing.assert_close(getattr(host, name), getattr(device, name), rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("best", [60.0, 95.0, 300.0, 3000.0])
def test_a_faint_rest_is_as_exact(best: float) -> None:
    """Where probabilities of float32 are 0, their logarithms are not."""
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    logits[1, 77] += best
    logits[2, [3, 4, 5, 6]] += best
    labels = torch.tensor([0, 77, 9])
    check(most_likely_tokens(logits, labels, 4), logits, labels, 4)
    tails = torch.from_numpy(np.delete(logits[1].double().log_softmax(-1).numpy(), 77)).logsumexp(-1)
    kept = keep_nucleus(logits, labels, p=0.9, min_entries=1, max_entries=400)
    np.testing.assert_allclose(kept["tail_logmass"][1], tails, rtol=1e-6)


def test_a_tail_of_a_millionth_is_not_what_the_others_leave() -> None:
    probs = np.full(1001, 1e-9)
    probs[0] = 1 - 1e-6
    logits = torch.from_numpy(np.log(probs)).float()[None]
    kept = keep_top_k(logits, torch.tensor([0]), 1)
    tail = np.exp(logits[0].double().log_softmax(-1).numpy()[1:]).sum()
    assert float(kept["tail_logmass"].double().exp()) == pytest.approx(tail, rel=1e-5)


def test_bounds_hold_where_all_candidates_are_of_one_group() -> None:
    """Tokens of a group are `num_groups` apart: here one group has all of the best, and the bound lets many through."""
    count, vocab = 5, 5 * 2 * GROUP_SIZE * 3
    logits = torch.zeros(1, vocab)
    logits[0, :: vocab // GROUP_SIZE] = torch.arange(1.0, 1 + GROUP_SIZE)
    labels = torch.tensor([1])
    check(most_likely_tokens(logits, labels, count), logits, labels, count)


@pytest.mark.parametrize("p", [0.3, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("least", [1, FEW + 10])
def test_fewer_entries_where_they_are_enough_change_nothing(p: float, least: int) -> None:
    """Rows from sure to unsure, ties at every cut."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3000, generator=generator) * torch.linspace(0.5, 20, 40)[:, None]
    logits, labels = logits.bfloat16(), torch.randint(3000, (40,), generator=generator)
    settings = {"min_entries": least, "max_entries": 500}
    short = keep_nucleus(logits, labels, p=p, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignkd.teacher_dump.targets.logits.truncation.Enough", lambda **values: None)
        full = keep_nucleus(logits, labels, p=p, **settings)
    narrow = short["logprobs"].isneginf().any(dim=-1)
    assert narrow.any() == (p < 1) and not narrow.all() and not full["logprobs"].isneginf().any()
    one, other = (truncated_logits({name: values.numpy() for name, values in kept.items()}) for kept in (short, full))
    for name in ("ids", "logprobs", "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.tail_logmass, other.tail_logmass, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("enough", [None, Enough(mass=0.9, entries=1)])
def test_a_row_that_is_not_finite_is_found_and_harms_no_other(value: float, enough: Enough | None) -> None:
    logits = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    labels, sound = torch.tensor([1, 2, 3]), logits.clone()
    logits[1, 7] = value
    found, expected = most_likely_tokens(logits, labels, 100, enough), most_likely_tokens(sound, labels, 100, enough)
    assert found.is_finite_N.tolist() == [True, False, True]
    assert module._on_device(logits, labels, 100).is_finite_N.tolist() == [True, False, True]
    for name, values in vars(expected).items():
        assert torch.equal(getattr(found, name)[[0, 2]], values[[0, 2]]), name
