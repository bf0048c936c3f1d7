"""Kept entries come back exactly, and what the settings do not promise is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage import LogitsCodec, RecordError, TruncatedLogits
from alignkd.storage.logits.registry import LogitSizes, logits_codec
from alignkd.storage.logits.truncated import TruncatedLogitsCodec

FIELDS = ("ids", "logprobs", "offsets", "tail_logmass")


@st.composite
def truncated_logits(draw: st.DrawFn) -> TruncatedLogits:
    """Up to 4 positions with 1 to 4 entries each of a distribution over 1000 ids."""
    counts = draw(st.lists(st.integers(1, 4), max_size=4))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    masses = [draw(hnp.arrays(np.float64, count + 1, elements=st.floats(0.01, 1))) for count in counts]
    logs = [np.log(mass / mass.sum()) for mass in masses]
    return TruncatedLogits(
        ids=draw(hnp.arrays(np.uint16, int(offsets[-1]), elements=st.integers(0, 999))),
        logprobs=np.concatenate([np.empty(0), *(log[:-1] for log in logs)]).astype(np.float32),
        offsets=offsets,
        tail_logmass=np.array([log[-1] for log in logs], np.float32),
    )


def codec(**settings: Any) -> TruncatedLogitsCodec:
    return TruncatedLogitsCodec(**{"vocab_size": 1000, "max_entries": 3, "dtype": "float32"} | settings)


@settings(max_examples=50)
@given(truncated_logits(), st.sampled_from([1000, 65536, 65537]), st.sampled_from([None, 0.001]))
def test_truncated_logits_come_back(logits: TruncatedLogits, vocab_size: int, mass: float | None) -> None:
    stored = codec(vocab_size=vocab_size, mass=mass).encode(logits)
    assert stored["entry_ids"].dtype == (np.uint32 if vocab_size > 65536 else np.uint16)
    decoded = codec(vocab_size=vocab_size, mass=mass).decode(stored.__getitem__)
    for name in FIELDS:
        assert (getattr(decoded, name) == getattr(logits, name)).all(), name


@settings(max_examples=50)
@given(truncated_logits())
def test_float16_logprobs_still_hold_the_mass(logits: TruncatedLogits) -> None:
    half = codec(dtype="float16")
    half.decode(half.encode(logits).__getitem__).__post_init__()


def positions(*masses: list[float], largest_id: int = 5) -> TruncatedLogits:
    """One position per list; what its masses leave is the tail."""
    flat = np.array([mass for entries in masses for mass in entries])
    with np.errstate(divide="ignore"):
        tails = np.log([max(0, 1 - sum(entries)) for entries in masses])
    return TruncatedLogits(
        ids=np.full(len(flat), largest_id, np.uint16),
        logprobs=np.log(flat).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum([len(entries) for entries in masses])]).astype(np.int64),
        tail_logmass=tails.astype(np.float32),
    )


@pytest.mark.parametrize("entries", [0, 5])
def test_too_few_and_too_many_entries_are_refused(entries: int) -> None:
    logits = positions([0.1] * entries)
    with pytest.raises(RecordError, match=rf"logits keep {entries}..{entries} entries .* expected 1..4 \(top_k 3"):
        codec().encode(logits)


@pytest.mark.parametrize("entries", [1, 7])
def test_a_nucleus_has_a_floor_and_a_cap(entries: int) -> None:
    nucleus = codec(mass=0.5, min_entries=2, max_entries=5)
    nucleus.encode(positions([0.15] * 6, [0.3, 0.3]))
    with pytest.raises(RecordError, match=rf"keep {entries}..{entries} entries .* expected 2..6 \(max_entries 5 and"):
        nucleus.encode(positions([0.14] * entries))


def test_the_floor_of_a_small_vocabulary_is_the_vocabulary() -> None:
    codec(vocab_size=6, mass=0.5, min_entries=8, max_entries=9).encode(positions([1 / 6] * 6))


def test_a_nucleus_without_its_mass_is_refused() -> None:
    nucleus = codec(mass=0.9, max_entries=3)
    nucleus.encode(positions([0.2, 0.2, 0.2], [0.9]))
    with pytest.raises(RecordError, match=r"position 1 keep mass 0.6000 in 2 entries, expected mass 0.9 or 3 entries"):
        nucleus.encode(positions([0.95], [0.3, 0.3]))


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(RecordError, match="logits hold id 40, expected below vocab_size 40"):
        codec(vocab_size=40).encode(positions([0.5], largest_id=40))


@pytest.mark.parametrize(
    "settings",
    [{"kind": "topk", "top_k": 7}, {"kind": "nucleus", "p": 0.98, "min_entries": 8, "max_entries": 1024}],
)
def test_settings_reach_the_codec_and_its_description(settings: dict[str, Any]) -> None:
    made = logits_codec(LogitsCodec(**settings), LogitSizes(vocab_size=32000, hidden_size=8))
    assert isinstance(made, TruncatedLogitsCodec)
    described = json.loads(json.dumps(made.describe()))
    assert described["codec_id"] == settings["kind"]
    assert (described["max_entries"], described["min_entries"], described["mass"]) == (
        settings.get("top_k", 1024),
        settings.get("min_entries", 1),
        settings.get("p"),
    )
