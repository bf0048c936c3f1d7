"""Recognises checkpoints in MobileVLM's layout."""

from alignkd.vlm.families.family import CheckpointFolder
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint

# Keys that the original writes into `config.json`, and the types of model that it writes.
OWN_KEYS = ("mm_projector_type", "mm_vision_tower")
OWN_TYPES = ("mobilevlm", "llava_llama")


def open_folder(found: CheckpointFolder) -> MobileVLMCheckpoint | None:
    """The checkpoint, or None if `config.json` is not of this layout."""
    if found.raw.get("model_type") not in OWN_TYPES and not any(key in found.raw for key in OWN_KEYS):
        return None
    return MobileVLMCheckpoint(
        found.name,
        found.folder,
        vision_config=found.vision_config,
        has_weights=found.has_weights,
        raw=found.raw,
    )
