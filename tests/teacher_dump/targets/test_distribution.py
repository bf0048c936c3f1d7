"""What is kept of the distribution: every kind in chunks as in one piece, and never of a broken teacher."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.errors import RecordError
from alignkd.storage.record.record import HiddenStates, SampledLogits, TruncatedLogits
from alignkd.teacher_dump.targets.logits import distribution
from alignkd.teacher_dump.targets.logits.distribution import draws_of, keep_distribution
from alignkd.teacher_dump.targets.logits.distribution import stored_logits as from_rows

KINDS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float32"},
    "topk": {"top_k": 5},
    "nucleus": {"p": 0.9, "min_entries": 2, "max_entries": 12},
    "hidden": {"dtype": "float32"},
    "sampled": {"num_draws": 20},
}
NUM, WIDTH, VOCAB = 11, 6, 40


@pytest.fixture
def teacher() -> tuple[Tensor, Tensor, torch.nn.Linear]:
    torch.manual_seed(0)
    return torch.randn(NUM, WIDTH) * 3, torch.randint(VOCAB, (NUM,)), torch.nn.Linear(WIDTH, VOCAB, bias=False)


def stored_logits(head: Any, hidden: Tensor, labels: Tensor, codec: LogitsCodec, *, draw_key: tuple[int, int]) -> Any:
    """What a record of these positions holds."""
    seed, index = draw_key
    drawn = draws_of(codec, seed, [(index, len(hidden))])
    rows = keep_distribution(head, hidden, labels, None if drawn is None else torch.from_numpy(drawn), codec)
    return from_rows({name: values.numpy() for name, values in rows.items()}, codec)


def arrays_of(logits: Any) -> dict[str, np.ndarray]:
    return {"logits": logits} if isinstance(logits, np.ndarray) else dict(vars(logits))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind: str, teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, labels, head = teacher
    codec = LogitsCodec(kind=kind, **KINDS[kind])
    whole = stored_logits(head, hidden, labels, codec, draw_key=(1, 2))
    monkeypatch.setattr(distribution, "POSITIONS_AT_ONCE", 4)
    chunked = stored_logits(head, hidden, labels, codec, draw_key=(1, 2))
    for name, values in arrays_of(whole).items():
        found = arrays_of(chunked)[name]
        assert found.dtype == values.dtype
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5)  # a product of other height
        else:
            np.testing.assert_array_equal(found, values)


def test_each_kind_is_what_the_store_takes(teacher: Any) -> None:
    hidden, labels, head = teacher
    logits = head(hidden).detach().numpy()
    kept = {
        kind: stored_logits(head, hidden, labels, LogitsCodec(kind=kind, **settings), draw_key=(0, 0))
        for kind, settings in KINDS.items()
    }
    np.testing.assert_array_equal(kept["full"], logits)
    assert isinstance(kept["hidden"], HiddenStates)
    np.testing.assert_array_equal(kept["hidden"].states, hidden.numpy())
    for kind, least, most in (("topk", 5, 6), ("nucleus", 2, 13)):
        truncated = kept[kind]
        assert isinstance(truncated, TruncatedLogits) and truncated.ids.dtype == np.uint16
        counts = np.diff(truncated.offsets)
        assert len(counts) == NUM and counts.min() >= least and counts.max() <= most
    assert isinstance(kept["sampled"], SampledLogits) and kept["sampled"].counts.dtype == np.uint8
    assert (kept["sampled"].draws_per_position() == 20).all()
    assert stored_logits(head, hidden, labels, LogitsCodec(kind="none"), draw_key=(0, 0)) is None


def test_draws_are_the_samples_own(teacher: Any) -> None:
    codec = LogitsCodec(kind="sampled", num_draws=300)
    hidden, labels, head = teacher
    first, again, other_sample, other_seed = (
        stored_logits(head, hidden, labels, codec, draw_key=key) for key in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert isinstance(first, SampledLogits) and first.counts.dtype == np.uint16
    np.testing.assert_array_equal(first.ids, again.ids)
    np.testing.assert_array_equal(first.counts, again.counts)
    for other in (other_sample, other_seed):
        assert first.counts.tolist() != other.counts.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_is_refused(kind: str, value: float, teacher: Any) -> None:
    hidden, labels, head = teacher
    hidden[3, 0] = value
    with pytest.raises(RecordError, match="NaN or infinite"):
        stored_logits(head, hidden, labels, LogitsCodec(kind=kind, **KINDS[kind]), draw_key=(0, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_no_supervised_position(kind: str, teacher: Any) -> None:
    _, _, head = teacher
    empty, labels = torch.empty(0, WIDTH), torch.empty(0, dtype=torch.int64)
    kept = stored_logits(head, empty, labels, LogitsCodec(kind=kind, **KINDS[kind]), draw_key=(0, 0))
    assert all(len(values) == (1 if name == "offsets" else 0) for name, values in arrays_of(kept).items())


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_padding_are_no_tokens(kind: str, teacher: Any) -> None:
    """Kinds that keep a part of the distribution do not see them, however large; whole logits and states keep all."""
    hidden, labels, head = teacher
    codec = LogitsCodec(kind=kind, **KINDS[kind])
    padded = torch.nn.Linear(WIDTH, VOCAB + 7, bias=False)
    with torch.no_grad():
        padded.weight[:VOCAB] = head.weight
        padded.weight[VOCAB:] *= 50
    drawn = draws_of(codec, 1, [(2, len(hidden))])
    uniforms = None if drawn is None else torch.from_numpy(drawn)
    kept = keep_distribution(padded, hidden, labels, uniforms, codec, num_tokens=VOCAB)
    plain = keep_distribution(head, hidden, labels, uniforms, codec)
    if kind == "full":
        np.testing.assert_array_equal(kept[""].numpy(), padded(hidden).detach().numpy())
        return
    for name, values in plain.items():
        np.testing.assert_allclose(kept[name].numpy(), values.numpy(), rtol=1e-5, atol=1e-5)
    if kind != "hidden":  # so the padding would have been seen
        whole = keep_distribution(padded, hidden, labels, uniforms, codec)
        assert any(not torch.equal(whole[name], values) for name, values in plain.items())
