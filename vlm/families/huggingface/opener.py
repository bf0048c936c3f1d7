"""Opens every checkpoint that no other family recognises, or refuses it."""

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import CheckpointFolder
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint


def open_folder(found: CheckpointFolder) -> HuggingFaceCheckpoint:
    """The checkpoint.

    Raises:
        InputError: not a vision-language model of transformers, or `vision_config` is given.
    """
    if found.vision_config is not None:
        raise InputError(
            f"{found.name}: vision_config {found.vision_config} is given, but the configuration of the vision tower is "
            "in this checkpoint's own config.json; leave vision_config out"
        )
    return HuggingFaceCheckpoint(found.name, found.folder, processor=found.processor, has_weights=found.has_weights)
