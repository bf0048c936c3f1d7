"""The log-probability of one record's supervised text: its sum, the mean per label, the perplexity."""

from collections.abc import Mapping
from typing import Any

from alignkd.storage.record.record import Record
from alignkd.storage.tools.verify.sequence import perplexity, sequence_logprob_of


def sequence_figures(record: Record) -> dict[str, Any] | None:
    """Sum in nats, labels, mean negative log-probability of a label, perplexity; None without the target.

    The last two are None for a record without supervised positions.
    """
    value, labels = sequence_logprob_of(record), len(record.supervised_positions)
    if value is None:
        return None
    mean = -value / labels if labels else None
    return {
        "logprob": value,
        "labels": labels,
        "mean_nll": mean,
        "perplexity": None if mean is None else perplexity(mean),
    }


def sequence_lines(figures: Mapping[str, Any] | None) -> list[str]:
    """The figures on one line; nothing without any."""
    if figures is None:
        return []
    line = f"{'teacher on the text':<24}log-probability {figures['logprob']:.6g} of {figures['labels']} labels"
    if figures["mean_nll"] is None:
        return [line]
    return [f"{line}, mean NLL {figures['mean_nll']:.4g} nats, perplexity {figures['perplexity']:.4g}"]
