"""Which samples each shard of a store holds: a pure function of the manifest."""

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.order import WRITE_EPOCH, permutation, shard_plan


def store_plan(manifest: Manifest) -> list[NDArray[np.int64]]:
    """Data-set indices of each shard in the order of writing, int64 [samples of the shard].

    The first dump and every addition are planned separately, so that an addition changes no earlier shard.
    """
    return [
        indices + part.first_sample
        for part in manifest.parts
        for indices in planned_shards(part.num_samples, manifest.shard_size, manifest.seed, contiguous=part.contiguous)
    ]


def planned_shards(num_samples: int, shard_size: int, seed: int, *, contiguous: bool) -> list[NDArray[np.int64]]:
    """The plan of `num_samples` samples.

    Args:
        contiguous: every shard holds consecutive samples, and the order of the shards is permuted in place of that of
            the samples: data that are slow to read in another order are read in long runs.
    """
    if not contiguous:
        return shard_plan(num_samples, shard_size, seed)
    full = num_samples // shard_size
    starts = permutation(full, seed, WRITE_EPOCH) * shard_size
    shards = [np.arange(start, start + shard_size, dtype=np.int64) for start in starts.tolist()]
    # the shard that is not full stays the last one, as in every plan
    rest = np.arange(full * shard_size, num_samples, dtype=np.int64)
    return [*shards, *([rest] if len(rest) else [])]
