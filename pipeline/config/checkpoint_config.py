"""The configuration of a checkpoint, from its `config.json` alone, and the vision tower's configuration next to it."""

from functools import cached_property
from pathlib import Path
from typing import Any

from alignkd.student_train.output import read_configuration, read_exported, student_folder
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint, ModelConfig
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.sizes import MEMBERS, family_config, model_size
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.families.sizes import ModelSize
from alignkd.vlm.settings import ProcessorKind
from alignkd.vlm.weights.hub import cached_checkpoint


class OtherFamilyError(InputError):
    """The checkpoint is not a MobileVLM, whose configuration is needed."""


class PlannedModel:
    """A model of the configuration; its checkpoint is opened at most once, and without its weights.

    Attributes:
        name: folder or hub id.
    """

    def __init__(self, name: str, vision_config: Path | None, processor: ProcessorKind = "auto") -> None:
        """`vision_config`: folder with the vision tower's config.json; None takes the folder of `vision_config_of`."""
        self.name, self._vision_config, self._processor = name, vision_config, processor

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Configuration and tokenizer files.

        Raises:
            InputError: no such checkpoint.
        """
        vision_config = self._vision_config or vision_config_of(self.name)
        return open_checkpoint(self.name, vision_config=vision_config, weights=False, processor=self._processor)

    @property
    def is_known(self) -> bool:
        """Whether it is an official model that is not on this machine; its configuration is part of the package."""
        return self.name in MEMBERS and not Path(self.name).exists() and cached_checkpoint(self.name) is None

    @cached_property
    def size(self) -> ModelSize:
        """Shapes and sizes; official models need no download.

        Raises:
            InputError: no such checkpoint.
        """
        if self.name in MEMBERS and not Path(self.name).exists():
            return model_size(self.name, family_config(self.name))
        return self.checkpoint.size()

    @cached_property
    def config(self) -> ModelConfig:
        """The configuration; official models need no download.

        Raises:
            InputError: no such checkpoint.
        """
        if self.name in MEMBERS and not Path(self.name).exists():
            return family_config(self.name)
        return self.checkpoint.config


def checkpoint_config(checkpoint: str, vision_config: Path | None) -> VLMConfig:
    """The configuration of a MobileVLM checkpoint.

    Raises:
        InputError: no such checkpoint. OtherFamilyError: it is not a MobileVLM.
    """
    model = PlannedModel(checkpoint, vision_config)
    config = model.config
    if not isinstance(config, VLMConfig):
        raise OtherFamilyError(
            f"{checkpoint}: a checkpoint of the family {model.checkpoint.family}, which has no stem; store the targets"
        )
    return config


def vision_config_of(checkpoint: str | Path) -> Path | None:
    """The `student.vision_config` of the run that exported a checkpoint.

    None if the checkpoint is not a run's exported student, or if the run used the checkpoint's own `mm_vision_tower`.

    Raises:
        InputError: the run used a folder that does not exist any more.
    """
    folder = Path(checkpoint).absolute()
    configuration = _configuration_of(folder.parent) if folder == student_folder(folder.parent) else None
    section = (configuration or {}).get("student")
    found = section.get("vision_config") if isinstance(section, dict) else None
    if not isinstance(found, str):
        return None
    if not Path(found).exists():
        raise InputError(
            f"{checkpoint}: was trained with student.vision_config {found}, which does not exist; give the folder with "
            "the vision tower's config.json by --vision-config"
        )
    return Path(found)


def _configuration_of(output: Path) -> dict[str, Any] | None:
    """The configuration of the run whose student lies in the folder, exported at its end or from a checkpoint."""
    exported = read_exported(output)
    return read_configuration(output) if exported is None else exported["configuration"]
