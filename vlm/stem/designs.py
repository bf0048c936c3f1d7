"""The stem of each family: of a configuration, of a checkpoint, and of what a stem file says."""

from collections.abc import Mapping
from typing import Any

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint, ModelConfig
from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig
from alignkd.vlm.families.huggingface.stem.cut import reason_without_stem
from alignkd.vlm.families.huggingface.stem.design import HuggingFaceDesign
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.stem import StemDesign, smallest_depth
from alignkd.vlm.stem.mobilevlm import MobileVLMDesign

NO_STEM = "this family has no stem: store the targets (store.profile compact)"


def design_of(checkpoint: Checkpoint, depth: int | None = None) -> StemDesign:
    """What the stem of a checkpoint consists of; needs no weights.

    Args:
        depth: as for `design_or_reason`.

    Raises:
        InputError: its configuration is unusable, or it has no stem, or none of this depth.
    """
    found = design_or_reason(checkpoint.config, depth)
    if isinstance(found, str):
        raise InputError(f"{checkpoint.name}: {found}")
    return found


def design_or_reason(config: ModelConfig, depth: int | None = None) -> StemDesign | str:
    """What the stem of a model consists of, or why it has none, as a phrase.

    Args:
        depth: number of decoder layers whose attention the stem gives; None: the smallest.
    """
    if not isinstance(config, VLMConfig | HuggingFaceConfig):
        return NO_STEM
    if isinstance(config, HuggingFaceConfig) and (reason := reason_without_stem(config)) is not None:
        return f"{NO_STEM}; {reason}"
    depth = smallest_depth(config) if depth is None else depth
    if (wrong := _wrong_depth(config, depth)) is not None:
        return wrong
    return MobileVLMDesign(config, depth) if isinstance(config, VLMConfig) else HuggingFaceDesign(config, depth)


def _wrong_depth(config: ModelConfig, depth: int) -> str | None:
    """Why there is no stem of this depth, with the depths nearest to it; None if there is one."""
    layer, depths = depth - 1, [number + 1 for number in config.attention_layers]
    if depth in depths:
        return None
    why = "has no attention" if 0 <= layer < config.num_layers else f"is not among its {config.num_layers}"
    near = [*filter(lambda other: other < depth, depths)][-1:] + [*filter(lambda other: other > depth, depths)][:1]
    return f"no stem of depth {depth}, because layer {layer} {why}; choose depth {' or '.join(map(str, near))}"


def design_from(values: Mapping[str, Any]) -> StemDesign:
    """The design that a stem file describes; damaged values raise errors of any class.

    Args:
        values: `StemDesign.described`; those of MobileVLM name no family.
    """
    kind = HuggingFaceDesign if "family" in values else MobileVLMDesign
    found: StemDesign = kind.from_described(values)
    if (wrong := _wrong_depth(found.config, found.depth)) is not None:
        raise ValueError(wrong)
    return found
