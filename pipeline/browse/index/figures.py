"""The second pass: figures of each record that need some of its targets.

N supervised positions, E entries of all positions together.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.read.logprobs import distribution_of, entropies, log_normalisers
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits
from alignkd.storage.record.encoded import as_float32
from alignkd.storage.record.part import RecordPart
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE
from alignkd.storage.schema.targets.named import ATTENTION
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB, has_sequence_logprob
from alignkd.storage.tools.layers.stored import stored_attention
from alignkd.storage.tools.select.label_nll import mean_nll
from alignkd.storage.tools.select.label_rank import label_ranks

Numbers = NDArray[np.float64]
# beyond this exp exceeds what JSON and a page can show
MAX_NATS = 700.0
OF_DISTRIBUTION = ("entropy", "worst_label", "agreement", "tail_mass")


def figures_of(
    shard: OpenShard, manifest: Manifest, names: tuple[str, ...], stopped: Callable[[], bool]
) -> tuple[dict[str, Numbers], list[str]] | None:
    """Some figures of every record of a shard.

    Args:
        names: of `columns.figure_names`.
        stopped: called for each record; True ends the pass.

    Returns:
        Each figure, float64 [n], NaN where the record has none, and one line for each record that cannot be read. None
        if it was stopped.
    """
    values = {name: np.full(len(shard), np.nan) for name in names}
    problems = []
    reader = _Reader(shard, manifest, names)
    for number in range(len(shard)):
        if stopped():
            return None
        try:
            for name, value in reader.figures(number).items():
                values[name][number] = value
        except (StoreError, ValueError, IndexError, KeyError) as error:
            problems.append(f"shard {shard.commit.shard}, record {number}: {' '.join(str(error).split())}")
    return values, problems


class _Reader:
    """Reads what some figures need of each record, and no other target."""

    def __init__(self, shard: OpenShard, manifest: Manifest, names: tuple[str, ...]) -> None:
        self._shard, self._manifest, self._names = shard, manifest, names
        stored = has_sequence_logprob(manifest)
        self._attention = next(iter(stored_attention(manifest)), None) if "attention_mass" in names else None
        self._of_distribution = [name for name in OF_DISTRIBUTION if name in names]
        self._logits = bool(self._of_distribution) or ("perplexity" in names and not stored)
        self._more = []
        if "perplexity" in names and stored:
            self._more.append(SEQUENCE_LOGPROB)
        if "visual_advantage" in names:
            self._more.append(ADVANTAGE)
        self._own_attention = self._attention is not None and self._attention.name == ATTENTION
        if self._attention is not None and not self._own_attention:
            self._more.append(self._attention.name)

    def figures(self, number: int) -> dict[str, float]:
        part = self._shard.part(number, logits=self._logits, attention=self._own_attention, more=self._more)
        found: dict[str, float] = {}
        if "perplexity" in self._names:
            with suppress(StoreError):  # the part was read: a label is not among the stored entries
                found["perplexity"] = perplexity(mean_nll(part, self._manifest, None))
        if "visual_advantage" in self._names:
            found["visual_advantage"] = _advantage(part)
        if self._of_distribution:
            of = distribution_figures(part, self._manifest)
            found |= {name: of[name] for name in self._of_distribution}
        if self._attention is not None:
            found["attention_mass"] = self._attention_mass(part)
        return found

    def _attention_mass(self, part: RecordPart) -> float:
        """Sum over the vision tokens, mean over queries and stored heads; NaN without an image or a query."""
        assert self._attention is not None
        stored: Any = part.attention if self._own_attention else part.more.get(self._attention.name)
        if stored is None:
            return math.nan
        values = as_float32(stored)
        if self._own_attention:  # [blocks, rows, heads, columns]
            rows, heads = values.shape[1:3]
        else:  # [rows, layers times heads, columns]: the heads of the first layer
            values = values[:, : self._attention.heads]
            rows, heads = values.shape[:2]
        return float(values.sum(dtype=np.float64)) / (rows * heads) if rows else math.nan


def perplexity(nll: float) -> float:
    """exp of a mean negative log-probability in nats, at most exp(700)."""
    return math.exp(min(nll, MAX_NATS))


def distribution_figures(part: RecordPart, manifest: Manifest) -> Mapping[str, float]:
    """`OF_DISTRIBUTION` of a record whose logits were read; NaN where they do not follow, or without labels."""
    found = distribution_of(part.logits, None)
    figures = dict.fromkeys(OF_DISTRIBUTION, math.nan)
    if found is None or not len(part.labels):
        return figures
    if isinstance(found, SampledLogits):
        return figures | {"entropy": float(found.entropy.astype(np.float64).mean())}
    ranks = label_ranks(found, part.labels, manifest.codecs.logits.top_k)
    figures["agreement"] = float(ranks.within(1).mean())
    if isinstance(found, TruncatedLogits):
        return figures | _of_entries(found, part.labels)
    figures["entropy"] = float(entropies(found, manifest.shapes.vocab_size).mean())
    own = found[np.arange(len(found)), part.labels].astype(np.float64) - log_normalisers(found)
    return figures | {"worst_label": -float(own.min())}


def _of_entries(found: TruncatedLogits, labels: NDArray[np.int64]) -> dict[str, float]:
    """Entropy with the tail as one outcome; the worst label, where a label that is not kept counts as the tail."""
    logprobs, offsets = found.logprobs.astype(np.float64), found.offsets
    terms = np.concatenate([[0.0], np.cumsum(np.exp(logprobs) * logprobs)])
    entropy_N = -(terms[offsets[1:]] - terms[offsets[:-1]])
    if found.tail_logmass is None:
        return {"entropy": float(entropy_N.mean())}
    tail_N = found.tail_logmass.astype(np.float64)
    mass_N = np.exp(tail_N)
    entropy_N -= mass_N * np.where(mass_N > 0, tail_N, 0.0)
    position_E = np.repeat(np.arange(len(labels)), np.diff(offsets))
    is_label_E = found.ids == labels[position_E]
    own_N = tail_N.copy()
    own_N[position_E[is_label_E]] = logprobs[is_label_E]
    worst = min(MAX_NATS, -float(own_N.min()))
    return {"entropy": float(entropy_N.mean()), "worst_label": worst, "tail_mass": float(mass_N.mean())}


def _advantage(part: RecordPart) -> float:
    stored: Any = part.more.get(ADVANTAGE)
    if stored is None or isinstance(stored, TruncatedLogits | SampledLogits | HiddenStates) or not len(part.labels):
        return math.nan
    return float(as_float32(stored).astype(np.float64).mean())
