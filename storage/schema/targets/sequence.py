"""The further target that every new store has: the log-probability of each sample's supervised text."""

from typing import Final

from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.named import NamedTarget

# sum over a record's supervised positions of log p(label), in nats, float32 [1]; 0 without such positions
SEQUENCE_LOGPROB: Final = "sequence_logprob"
SEQUENCE_TARGET: Final = NamedTarget(name=SEQUENCE_LOGPROB, kind="values", codec="float32", rows="record")


def has_sequence_logprob(manifest: Manifest) -> bool:
    """Whether the records of the store hold the target; stores of earlier versions do not."""
    return SEQUENCE_TARGET in manifest.more
