"""Host memory of the teacher pass, for models whose images have different sizes.

Threads prepare one window while another is computed, so the image arrays of two windows are on the host, up to a bound.
"""

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.disk.samples import DataSize
from alignkd.pipeline.plan.disk.store import StoreSize
from alignkd.pipeline.plan.memory.host import PROCESS_BYTES
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.teacher_dump.array_budget import IMAGE_ARRAY_BYTES

PREPARED_WINDOWS = 2
# a window is a random draw; its sum is rarely further than that many standard deviations above the mean
DEVIATIONS = 3.0


def teacher_host_bytes(config: RunConfig, data: DataSize, store: StoreSize, teacher: ModelShapes) -> dict[str, int]:
    """Part -> bytes of host memory of a dump; empty where every image has the same number of vision tokens.

    Weights are read into the device piece by piece and are not counted.
    """
    assert config.teacher is not None
    if teacher.size.vision_tokens is not None:
        return {}
    window = min(config.teacher.window, config.store.shard_size, data.num_samples)
    largest, vision = int(data.rows.vision.max()), data.rows.vision
    most = window * float(vision.mean()) + DEVIATIONS * float(vision.std()) * window**0.5
    arrays = PREPARED_WINDOWS * teacher.array_bytes_of(min(most, window * largest))
    # beyond the bound, the arrays of two batches
    bound = IMAGE_ARRAY_BYTES + 2 * teacher.array_bytes_of(max(config.teacher.token_budget, largest))
    targets = store.of_targets / max(1.0, data.num_records)
    return {
        "process": PROCESS_BYTES,
        "image arrays of two windows": min(arrays, bound),
        "records of a window": round(window * targets),
    }
