"""Mean negative log-probability of a record's labels for the teacher of its store.

Stores keep the sum over all labels (`sequence_logprob`). It also follows from stored logits that hold the exact
log-probability of every label: `full`, `hidden`, and `topk` or `nucleus` with a known tail, which keep each label.
"""

import math

import numpy as np

from alignkd.storage.errors import StoreError
from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.read.logprobs import answers, distribution_of
from alignkd.storage.record.encoded import as_float32
from alignkd.storage.record.part import RecordPart
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB, has_sequence_logprob

EXACT_KINDS = ("full", "hidden", "topk", "nucleus")


def check_gives_nll(manifest: Manifest, where: str) -> None:
    """Refuse a store from which the teacher's log-probability of the labels does not follow.

    Args:
        where: names the store.

    Raises:
        StoreError: with the next step.
    """
    logits = manifest.codecs.logits
    if has_sequence_logprob(manifest) or (logits.kind in EXACT_KINDS and logits.tail != "unknown"):
        return
    found = f"logits of kind {logits.kind}" + (" with an unknown tail" if logits.tail == "unknown" else "")
    raise StoreError(
        f"{where}: keeps no {SEQUENCE_LOGPROB}, and {found} do not give the teacher's log-probability of every label; "
        "dump the data again, which stores it"
    )


def mean_nll(part: RecordPart, manifest: Manifest, lm_head: LmHead | None) -> float:
    """Mean negative log-probability of a label in nats; NaN for a record without labels.

    Args:
        part: with `sequence_logprob` if the store keeps it, else with the logits.
        manifest: of the store.
        lm_head: the teacher's, for hidden states.

    Raises:
        StoreError: a label is not among the kept entries, so that its log-probability is unknown.
    """
    number = len(part.labels)
    if not number:
        return math.nan
    if SEQUENCE_LOGPROB in part.more:
        stored = part.more[SEQUENCE_LOGPROB]
        return -float(as_float32(stored).astype(np.float64).sum()) / number  # type: ignore[arg-type]  # one number
    found = distribution_of(part.logits, lm_head)
    if found is None:
        raise StoreError(f"no logits of a record with {number} labels; dump the store again")
    known = answers(found, np.arange(number), part.labels, manifest.shapes.vocab_size)
    if not known.kept.all():
        raise StoreError(
            f"the log-probability of {int((~known.kept).sum())} of {number} labels is not among the stored entries; "
            "dump the data again"
        )
    return -float(known.logprobs.sum()) / number
