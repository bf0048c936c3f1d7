"""Kept tokens per supervised position: given, measured, computed or assumed."""

import numpy as np

from alignkd.storage import Record, SampledLogits, StoreError, StoreReader, TruncatedLogits
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.vlm.families.family import ModelConfig

# What a nucleus of 0.98 keeps of a distribution with an entropy of 1.2 nats.
ASSUMED_NUCLEUS = 18.0
# Share of the draws that are different tokens.
ASSUMED_DISTINCT_DRAWS = 0.25
RECORDS_READ = 64


def entries_per_position(
    store: StoreConfig, teacher: ModelConfig, given: float | None, measured: float | None
) -> tuple[float, str]:
    """Kept tokens per supervised position, and where the figure comes from.

    Args:
        given: the user's own figure.
        measured: the figure of a probe.
    """
    codec = store.logits
    if codec.kind not in ("topk", "nucleus", "sampled"):
        return 0.0, "this kind of logits keeps no list of tokens"
    if given is not None:
        return given, "given"
    if measured is not None:
        return measured, "measured by the probe"
    if (found := entries_in_store(store)) is not None:
        return found, "measured on the existing store"
    if codec.kind == "topk":
        assert codec.top_k is not None
        return float(min(codec.top_k, teacher.vocab_size)), "arithmetic: top_k"
    if codec.kind == "sampled":
        assert codec.num_draws is not None
        distinct = max(1.0, ASSUMED_DISTINCT_DRAWS * codec.num_draws)
        return distinct, "assumed: a quarter of the draws are different tokens"
    assert codec.min_entries is not None and codec.max_entries is not None
    kept = min(max(ASSUMED_NUCLEUS, codec.min_entries), codec.max_entries, teacher.vocab_size)
    return kept, "assumed: a teacher of 1.2 nats per position; --probe measures it"


def entries_in_store(config: StoreConfig) -> float | None:
    """Kept tokens per supervised position of the store at `store.path`; None without one of the same kind of logits."""
    try:
        reader = StoreReader(config.path, allow_incomplete=True)
    except StoreError:
        return None
    if not len(reader) or reader.manifest.codecs.logits != config.logits:
        return None
    return mean_entries(reader)


def mean_entries(reader: StoreReader) -> float | None:
    """Kept tokens per supervised position over some records of a store; None if no list of tokens is kept."""
    numbers = np.unique(np.linspace(0, len(reader) - 1, RECORDS_READ).astype(int))
    counts = [found for number in numbers if (found := _entries(reader[int(number)])) is not None]
    positions = sum(count for count, _ in counts)
    return sum(entries for _, entries in counts) / positions if positions else None


def _entries(record: Record) -> tuple[int, int] | None:
    """Numbers of positions and of entries of a record; None if it has no list of tokens."""
    logits = record.logits
    if not isinstance(logits, TruncatedLogits | SampledLogits):
        return None
    return len(logits.offsets) - 1, int(logits.offsets[-1])
