"""What a counterfactual pass adds to a plan: rows of a store, operations of the dump and of training."""

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.plan.disk.samples import SampleRows
from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.schema.columns.shard import part_name
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE, EVIDENCE, FULL, REMOVED
from alignkd.student_train.objective.counterfactual_terms import EFFECT, KEEP
from alignkd.student_train.objective.settings import LossConfig

# two nuclei that have nothing in common, each of 18 tokens, as `entries.py` assumes
ASSUMED_ENTRIES = 36.0
NAMES = (FULL, REMOVED, ADVANTAGE, EVIDENCE)


def counterfactual_rows(manifest: Manifest, rows: SampleRows) -> dict[str, NDArray[np.int64]]:
    """Rows that each sample brings to each group of the pass, int64 [samples]; none without a pass.

    With a mass below 1 the number of tokens at a position is assumed.
    """
    positions = np.where(rows.images > 0, rows.supervised, 0)
    found = {}
    for target in manifest.more:
        if target.name not in NAMES:
            continue
        found[target.name] = rows.vision if target.name == EVIDENCE else positions
        if isinstance(target.codec, LogitsCodec):
            entries = np.rint(positions * _entries(target.codec, manifest.shapes.vocab_size))
            found[part_name(target, "entry")] = entries.astype(np.int64)
    return found


def has_second_pass(losses: LossConfig) -> bool:
    """Whether a training step runs the student twice."""
    return bool(losses.weights.keys() & {EFFECT, KEEP})


def _entries(codec: LogitsCodec, vocab_size: int) -> float:
    assert codec.max_entries is not None and codec.p is not None
    most = min(codec.max_entries, vocab_size)
    return most if codec.p == 1 else min(ASSUMED_ENTRIES, most)
