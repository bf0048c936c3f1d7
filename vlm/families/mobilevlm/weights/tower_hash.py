"""Whether two models share their frozen vision tower: a hash of its weights in the dtype in which they run.

Features depend on the weights in the dtype of the arithmetic, so a tower has one hash per dtype, over its values
rounded to that dtype. float32 holds every 16-bit value exactly, so copies of the same values have the same float32
hash whatever dtype they are saved in. A rounded copy (float32 saved as bfloat16) has another float32 hash and the same
bfloat16 hash: the two are one tower in bfloat16, but not in float32.
"""

from collections.abc import Iterable

from torch import Tensor

from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.tower_settings import tower_settings
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.mobilevlm.weights.sources import TOWER_PREFIX, tower_tensors
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.weights.tensor_hash import hash_by_dtype


def tower_hashes(
    tensors: Iterable[tuple[str, Tensor]], config: VLMConfig, dtypes: Iterable[str] = tuple(TORCH_DTYPES)
) -> dict[str, str]:
    """Dtype -> sha256 over the tower's names, shapes and values in that dtype, and the settings of its features.

    Args:
        tensors: a model's parameters by name, in any order; others than the tower's are skipped. One at a time is held
            in each dtype.
        config: configuration of the model.
        dtypes: names in `TORCH_DTYPES`.
    """
    own = ((key, tensor) for key, tensor in tensors if key.startswith(TOWER_PREFIX))
    return hash_by_dtype(own, tower_settings(config), dtypes)


def running_tower_hash(model: MobileVLM) -> tuple[str, str]:
    """The dtype in which a model's tower runs, and its hash in it."""
    dtype = next(model.model.vision_tower.parameters()).dtype
    name = str(dtype).removeprefix("torch.")
    return name, tower_hashes(model.state_dict().items(), model.config, [name])[name]


def checkpoint_tower_hash(checkpoint: MobileVLMCheckpoint, dtype: str) -> str:
    """The hash in `dtype` of the tower in a checkpoint's weight files; no other tensor is read.

    Raises:
        InputError: the checkpoint has no weights, or no tower among them.
    """
    tensors = tower_tensors(checkpoint.folder, checkpoint.sources)
    return tower_hashes(tensors, checkpoint.config, [dtype])[dtype]
