"""Unusable samples of a store that may have become usable; their shards are written again.

A missing, unreadable or damaged file may have been restored; a sample that did not fit the device may fit another one.
The data file and the settings cannot change, because the manifest fixes them.
"""

from collections.abc import Callable, Iterator, Sequence

from alignkd.storage.schema.commit_record import committed_shards, load_heads
from alignkd.storage.write.store import StoreWriter
from alignkd.teacher_dump.preparation import Prepared
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSource

COMMAND = "alignkd dump CONFIG --retry-unusable"
# parts of reasons in stores written before the advice was added
_WITHOUT_ADVICE = ("image cannot be read (", "do not fit the memory of")
SAMPLES_AT_ONCE = 64


def with_advice(reason: str, command: str = COMMAND) -> str:
    """A reason that a retry may remove, with the command for it."""
    return f"{reason}, then run `{command}`"


def may_be_retried(reason: str) -> bool:
    """Whether a reason in a store can be removed by a retry."""
    return COMMAND in reason or any(text in reason for text in _WITHOUT_ADVICE)


def shards_to_retry(
    store: StoreWriter, samples: DataSource, prepare: Callable[[Sequence[Sample]], list[Prepared]]
) -> Iterator[tuple[int, int, int]]:
    """(shard, number of unusable samples, number of them that can be prepared now) of each shard with any.

    Images are read and decoded, and conversations tokenised; the teacher is not needed.

    Raises:
        StoreError: an invalid commit record. InputError: files that temporarily cannot be read.
    """
    # another worker may have grown the store since: the added shards are not of this plan
    shards = [shard for shard in committed_shards(store.files) if shard < store.manifest.num_shards]
    for head, _ in load_heads(store.files, shards, store.manifest.shard_hash, whole=False):
        listed = [entry.index for entry in head.quarantined]
        usable = 0
        for start in range(0, len(listed), SAMPLES_AT_ONCE):
            usable += len(prepare([samples[index] for index in listed[start : start + SAMPLES_AT_ONCE]]))
        if listed:
            yield head.shard, len(listed), usable
