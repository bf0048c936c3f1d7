"""The shapes of a model that a plan needs, from its `config.json` alone."""

from dataclasses import dataclass
from typing import Self

from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.sizes import model_size
from alignkd.vlm.families.sizes import ModelSize


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
        size = model_size(name, config)
        assert size.tower.patches is not None  # this family's images have one size
        return cls(
            size=size,
            vision_patches=size.tower.patches,
            vision_hidden_size=size.tower.hidden_size,
            vision_intermediate_size=size.tower.intermediate_size,
            vision_layers=size.tower.num_layers,
        )
