"""Whether a configuration takes targets from the teacher's stem, and whether its student's vision tower allows that."""

from typing import Any

from alignkd.pipeline.config.checkpoint_config import checkpoint_config
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.storage.codecs.settings import STEM, STEM_TARGETS
from alignkd.student_train.config import TARGET_OF_TERM
from alignkd.vlm.errors import InputError
from alignkd.vlm.model.config import VLMConfig
from alignkd.vlm.weights.hub import cached_checkpoint
from alignkd.vlm.weights.tower_hash import checkpoint_tower_hash, tower_settings


def takes_from_stem(config: RunConfig) -> bool:
    """Whether training takes from the stem a target whose loss has a weight."""
    if config.train is None:
        return bool(config.store.codecs().from_stem)
    weighed = {key for term, key in TARGET_OF_TERM.items() if term in config.train.losses.weights}
    chosen = config.train.targets
    return any(
        getattr(chosen, key) == STEM or (getattr(chosen, key) is None and getattr(config.store, key) == STEM)
        for key in weighed & set(STEM_TARGETS)
    )


def tower_match(config: RunConfig) -> tuple[bool | None, str]:
    """Whether teacher and student have the same vision tower, so that the stem can use the student's features.

    The settings of the towers are compared first, then the weights in the student's dtype. Weights are read only if
    both checkpoints are on this machine; nothing is downloaded.

    Returns:
        True, False, or None if it cannot be decided; and the reason.
    """
    teacher, student = config.teacher, config.student
    if teacher is None or student is None:
        return None, "the configuration has no student"
    try:
        theirs, own = (checkpoint_config(model.checkpoint, model.vision_config) for model in (teacher, student))
    except InputError:
        return None, f"the student {student.checkpoint} does not exist yet"
    for name, found, expected in _differing(own, theirs):
        return False, f"{name} is {found} in the student, {expected} in the teacher"
    folders = [cached_checkpoint(model.checkpoint) for model in (teacher, student)]
    if any(folder is None for folder in folders):
        return None, "at least one checkpoint is not on this machine; `alignkd train` compares the towers"
    try:
        hashes = {
            checkpoint_tower_hash(folder, shapes, student.dtype)
            for folder, shapes in zip(folders, (theirs, own), strict=True)
            if folder is not None
        }
    except InputError as error:
        return None, f"the towers cannot be compared ({error})"
    if len(hashes) > 1:
        return False, f"the weights of the vision towers differ in {student.dtype}"
    return True, f"teacher and student share their vision tower (weights compared in {student.dtype})"


def _differing(own: VLMConfig, theirs: VLMConfig) -> list[tuple[str, Any, Any]]:
    found = {**tower_settings(own), "vision_tokens": own.vision_tokens}
    expected = {**tower_settings(theirs), "vision_tokens": theirs.vision_tokens}
    return [(name, found[name], expected[name]) for name in expected if found[name] != expected[name]]
