"""Rows that the further targets on vision tokens and on hidden states add to a store."""

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.plan.disk.samples import SampleRows
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.vision import PROJECTOR_RELATIONS, RELATIONS, STATE_NORMS, VISION_STATES


def vision_rows(manifest: Manifest, rows: SampleRows) -> dict[str, NDArray[np.int64]]:
    """Rows that each sample brings to the group of each of these targets that the store keeps, int64 [samples].

    Images of a sample are taken to have equally many tokens, with which they have the fewest pairs.
    """
    images = np.maximum(rows.images, 1)
    pairs = np.rint(rows.vision * (rows.vision / images - 1) / 2).astype(np.int64)
    known = {
        VISION_STATES: rows.vision,
        RELATIONS: pairs,
        PROJECTOR_RELATIONS: pairs,
        STATE_NORMS: rows.supervised,
        AFFINITY: np.where(rows.images > 0, rows.queries, 0),
    }
    return {target.name: known[target.name] for target in manifest.stored_more if target.name in known}
