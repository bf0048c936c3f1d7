"""The vision tower of a checkpoint without the rest of the model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkd.vlm.families.mobilevlm.model.vision_tower import VisionTower
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.mobilevlm.weights.loading import materialise_positions
from alignkd.vlm.families.mobilevlm.weights.sources import check_tower, tower_tensors
from alignkd.vlm.inputs.batch import ImageTensors

# the tower's place in a model
_PREFIX = "model.vision_tower."


class MobileVLMTower:
    """Implements `Tower` of `alignkd.vlm.families.stem`.

    Args:
        checkpoint: of its weights only those of the tower are read.
        dtype: dtype of weights and arithmetic.

    Raises:
        InputError: it has no tower, or one of other shapes than its configuration says.
    """

    def __init__(self, checkpoint: MobileVLMCheckpoint, dtype: torch.dtype) -> None:
        config = checkpoint.config
        with torch.device("meta"):
            self._tower = VisionTower(config.vision, config.vision_select_layer).eval()
        found = {
            key.removeprefix(_PREFIX): tensor.to(dtype, copy=True)
            for key, tensor in tower_tensors(checkpoint.folder, checkpoint.sources)
        }
        check_tower(checkpoint.folder, found, self._tower.state_dict())
        self._tower.load_state_dict(found, assign=True)
        materialise_positions(self._tower, torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, images: Sequence[ImageTensors]) -> Tensor:
        """The tower's output [I, patches, D_vision]."""
        features_IND: Tensor = self._tower(torch.stack([image["pixel_values"] for image in images]))
        return features_IND
