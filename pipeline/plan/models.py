"""What a plan needs to know of a model: its `config.json` and nothing else."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from alignkd.vlm.model.config import VLMConfig
from alignkd.vlm.model.sizes import MEMBERS, ModelSize, family_config, model_size
from alignkd.vlm.weights.checkpoint import Checkpoint


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


class PlannedModel:
    """A model of the configuration: its checkpoint is found at most once, and without its weights.

    Attributes:
        name: folder or hub id.
    """

    def __init__(self, name: str, vision_config: Path | None) -> None:
        self.name, self._vision_config = name, vision_config

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Configuration and tokenizer files.

        Raises:
            InputError: no such checkpoint.
        """
        return Checkpoint.open(self.name, vision_config=self._vision_config, weights=False)

    @cached_property
    def config(self) -> VLMConfig:
        """The configuration; that of an official model is known without its checkpoint.

        Raises:
            InputError: no such checkpoint, or an unsupported one.
        """
        if self.name in MEMBERS and not Path(self.name).exists():
            return family_config(self.name)
        return self.checkpoint.config


def config_of(checkpoint: str, vision_config: Path | None) -> VLMConfig:
    """`PlannedModel.config`, for callers that need nothing else."""
    return PlannedModel(checkpoint, vision_config).config
