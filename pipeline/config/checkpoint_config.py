"""The configuration of a checkpoint, from its `config.json` alone."""

from pathlib import Path

from alignkd.vlm.model.config import VLMConfig, load_config
from alignkd.vlm.model.sizes import MEMBERS, family_config
from alignkd.vlm.weights.hub import resolve_checkpoint


def checkpoint_config(checkpoint: str, vision_config: Path | None) -> VLMConfig:
    """The configuration of a folder or hub id; official models need no download.

    Args:
        vision_config: folder with the vision tower's config.json; None takes the checkpoint's `mm_vision_tower`.

    Raises:
        InputError: no such checkpoint, or one of another model family.
    """
    if checkpoint in MEMBERS and not Path(checkpoint).exists():
        return family_config(checkpoint)
    return load_config(resolve_checkpoint(checkpoint, weights=False), vision_config=vision_config)
