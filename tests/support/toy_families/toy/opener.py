"""Recognises the toy's checkpoints."""

from alignkd.vlm.families.toy.checkpoint import ToyCheckpoint

from alignkd.vlm.families.family import CheckpointFolder


def open_folder(found: CheckpointFolder) -> ToyCheckpoint | None:
    return ToyCheckpoint(found.name, found.folder) if found.raw.get("model_type") == "toy" else None
