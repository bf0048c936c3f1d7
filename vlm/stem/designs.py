"""The stem of each family: of a checkpoint, and of what a stem file says."""

from collections.abc import Mapping
from typing import Any

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.huggingface.stem.cut import why_no_stem
from alignkd.vlm.families.huggingface.stem.design import HuggingFaceDesign
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.stem import StemDesign
from alignkd.vlm.stem.mobilevlm import MobileVLMDesign

FAMILY = "family"


def design_of(checkpoint: Checkpoint) -> StemDesign:
    """What the stem of a checkpoint consists of; needs no weights.

    Raises:
        InputError: its configuration is unusable, or it has no stem.
    """
    if isinstance(checkpoint, MobileVLMCheckpoint):
        return MobileVLMDesign(checkpoint.config)
    reason = f"it is of the family {checkpoint.family}"
    if isinstance(checkpoint, HuggingFaceCheckpoint):
        if (problem := why_no_stem(checkpoint.config)) is None:
            return HuggingFaceDesign(checkpoint.config)
        reason = problem
    raise InputError(f"{checkpoint.name}: {reason}, so it has no stem: store the targets (store.profile compact)")


def design_from(values: Mapping[str, Any]) -> StemDesign:
    """The design that a stem file describes; damaged values raise errors of any class.

    Args:
        values: `StemDesign.described`; those of MobileVLM name no family.
    """
    if FAMILY in values:
        return HuggingFaceDesign.from_described(values)
    return MobileVLMDesign.from_described(values)
