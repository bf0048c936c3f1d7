"""Whether a configuration takes targets from the teacher's stem, and whether its student's vision tower allows that."""

from typing import Any

from alignkd.pipeline.config.checkpoint_config import OtherFamilyError, checkpoint_config, vision_config_of
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.storage.codecs.settings import STEM_TARGETS
from alignkd.student_train.target_source import target_source
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.tower_settings import tower_settings
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.mobilevlm.weights.tower_hash import checkpoint_tower_hash
from alignkd.vlm.weights.hub import cached_checkpoint

NO_STEM = "this family has no stem: store the targets"


def takes_from_stem(config: RunConfig) -> bool:
    """Whether training takes from the stem a target whose loss has a weight."""
    if config.train is None:
        return bool(config.store.codecs().from_stem)
    weighed = {*config.train.losses.needed_targets.values()}
    chosen, has_stem = config.train.targets, config.train.stem is not None
    return any(
        target_source(getattr(config.store, key), getattr(chosen, key), has_stem=has_stem) == "stem"
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
    except OtherFamilyError:
        return False, NO_STEM
    except InputError:
        return None, f"the student {student.checkpoint} does not exist yet"
    for name, found, expected in _differing(own, theirs):
        return False, f"{name} is {found} in the student, {expected} in the teacher"
    folders = (cached_checkpoint(teacher.checkpoint), cached_checkpoint(student.checkpoint))
    if folders[0] is None or folders[1] is None:
        return None, "at least one checkpoint is not on this machine; `alignkd train` compares the towers"
    checkpoints = (
        MobileVLMCheckpoint.open(folders[0], vision_config=teacher.vision_config),
        MobileVLMCheckpoint.open(
            folders[1], vision_config=student.vision_config or vision_config_of(student.checkpoint)
        ),
    )
    try:
        hashes = {checkpoint_tower_hash(checkpoint, student.dtype) for checkpoint in checkpoints}
    except InputError as error:
        return None, f"the towers cannot be compared ({error})"
    if len(hashes) > 1:
        return False, f"the weights of the vision towers differ in {student.dtype}"
    return True, f"teacher and student share their vision tower (weights compared in {student.dtype})"


def _differing(own: VLMConfig, theirs: VLMConfig) -> list[tuple[str, Any, Any]]:
    found = {**tower_settings(own), "vision_tokens": own.vision_tokens}
    expected = {**tower_settings(theirs), "vision_tokens": theirs.vision_tokens}
    return [(name, found[name], expected[name]) for name in expected if found[name] != expected[name]]
