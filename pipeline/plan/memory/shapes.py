"""The shapes of a model that a plan needs, from its `config.json` alone."""

from dataclasses import dataclass
from typing import Self

from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.sizes import ModelSize, model_size


@dataclass(frozen=True, kw_only=True)
class ModelShapes:
    """A model's shapes and sizes.

    Attributes:
        size: shapes of the language model, and parameter counts.
        vision_patches, vision_hidden_size, vision_intermediate_size: shapes of the vision tower.
        vision_layers: number of its layers that run.
    """

    size: ModelSize
    vision_patches: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_layers: int

    @classmethod
    def of(cls, name: str, config: VLMConfig) -> Self:
        """The shapes of a configuration; `name` is only displayed."""
        vision, layer = config.vision, config.vision_select_layer
        return cls(
            size=model_size(name, config),
            vision_patches=(int(vision.image_size) // int(vision.patch_size)) ** 2,
            vision_hidden_size=int(vision.hidden_size),
            vision_intermediate_size=int(vision.intermediate_size),
            vision_layers=layer if layer >= 0 else int(vision.num_hidden_layers) + 1 + layer,
        )
