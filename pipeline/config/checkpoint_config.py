"""The configuration of a checkpoint, from its `config.json` alone, and the vision tower's configuration next to it."""

from pathlib import Path

from alignkd.student_train.output import read_configuration, student_folder
from alignkd.vlm.errors import InputError
from alignkd.vlm.model.config import VLMConfig, load_config
from alignkd.vlm.model.sizes import MEMBERS, family_config
from alignkd.vlm.weights.hub import resolve_checkpoint


def checkpoint_config(checkpoint: str, vision_config: Path | None) -> VLMConfig:
    """The configuration of a folder or hub id; official models need no download.

    Args:
        vision_config: folder with the vision tower's config.json; None takes the folder of `vision_config_of`.

    Raises:
        InputError: no such checkpoint, or one of another model family.
    """
    if checkpoint in MEMBERS and not Path(checkpoint).exists():
        return family_config(checkpoint)
    folder = resolve_checkpoint(checkpoint, weights=False)
    return load_config(folder, vision_config=vision_config or vision_config_of(checkpoint))


def vision_config_of(checkpoint: str | Path) -> Path | None:
    """The `student.vision_config` of the run that exported a checkpoint.

    None if the checkpoint is not a run's exported student, or if the run used the checkpoint's own `mm_vision_tower`.

    Raises:
        InputError: the run used a folder that does not exist any more.
    """
    folder = Path(checkpoint).absolute()
    configuration = read_configuration(folder.parent) if folder == student_folder(folder.parent) else None
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
