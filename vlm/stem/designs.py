"""The stem of each family: of a configuration, of a checkpoint, and of what a stem file says."""

from collections.abc import Mapping
from typing import Any

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint, ModelConfig
from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig
from alignkd.vlm.families.huggingface.stem.cut import reason_without_stem
from alignkd.vlm.families.huggingface.stem.design import HuggingFaceDesign
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.stem import StemDesign
from alignkd.vlm.stem.mobilevlm import MobileVLMDesign

NO_STEM = "this family has no stem: store the targets (store.profile compact)"


def design_of(checkpoint: Checkpoint) -> StemDesign:
    """What the stem of a checkpoint consists of; needs no weights.

    Raises:
        InputError: its configuration is unusable, or it has no stem.
    """
    found = design_or_reason(checkpoint.config)
    if isinstance(found, str):
        raise InputError(f"{checkpoint.name}: {found}")
    return found


def design_or_reason(config: ModelConfig) -> StemDesign | str:
    """What the stem of a model consists of, or why it has none, as a phrase."""
    if isinstance(config, VLMConfig):
        return MobileVLMDesign(config)
    if not isinstance(config, HuggingFaceConfig):
        return NO_STEM
    reason = reason_without_stem(config)
    return HuggingFaceDesign(config) if reason is None else f"{NO_STEM}; {reason}"


def design_from(values: Mapping[str, Any]) -> StemDesign:
    """The design that a stem file describes; damaged values raise errors of any class.

    Args:
        values: `StemDesign.described`; those of MobileVLM name no family.
    """
    if "family" in values:
        return HuggingFaceDesign.from_described(values)
    return MobileVLMDesign.from_described(values)
