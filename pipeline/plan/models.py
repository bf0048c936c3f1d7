"""What a plan needs to know of a model: its `config.json` and nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from alignkd.vlm.model.config import VLMConfig, load_config
from alignkd.vlm.model.sizes import MEMBERS, ModelSize, family_config, model_size
from alignkd.vlm.weights.hub import resolve_checkpoint


@dataclass(frozen=True, kw_only=True)
class ModelShapes:
    """A model's shapes and sizes.

    Attributes:
        size: of the language model, and the counts of parameters.
        vision_patches, vision_hidden_size, vision_intermediate_size, vision_layers: of the tower as far as it is run.
    """

    size: ModelSize
    vision_patches: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_layers: int

    @classmethod
    def of(cls, name: str, config: VLMConfig) -> Self:
        """The shapes of a configuration; `name` is shown."""
        vision, layer = config.vision, config.vision_select_layer
        return cls(
            size=model_size(name, config),
            vision_patches=(int(vision.image_size) // int(vision.patch_size)) ** 2,
            vision_hidden_size=int(vision.hidden_size),
            vision_intermediate_size=int(vision.intermediate_size),
            vision_layers=layer if layer >= 0 else int(vision.num_hidden_layers) + 1 + layer,
        )


def config_of(checkpoint: str, vision_config: Path | None) -> VLMConfig:
    """The configuration of a folder or hub id; the family's own need not be fetched.

    Raises:
        InputError: no such checkpoint, or none of ours.
    """
    if checkpoint in MEMBERS and not Path(checkpoint).exists():
        return family_config(checkpoint)
    return load_config(resolve_checkpoint(checkpoint, weights=False), vision_config=vision_config)
