"""Refusals before the model is loaded: losses that would train nothing of the student, and missing libraries."""

import logging
from collections.abc import Collection

from alignkd.student_train.errors import TrainError
from alignkd.student_train.trained.counts import names_of, trained_counts
from alignkd.student_train.trained.settings import TrainedConfig, TrainedLayers
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.weights.bitsandbytes import quantization_library
from alignkd.vlm.weights.key_patterns import group_keys

logger = logging.getLogger(__name__)
# Losses that compare vision embeddings, which only the projector changes.
OF_VISION = ("vision_all", "vision_top")
# Linear layers of an attention module that come after its scores.
BEHIND_SCORES = ("v_proj", "o_proj", "out_proj", "dense", "c_proj")


def check_trained(
    config: TrainedConfig, checkpoint: Checkpoint, terms: Collection[str], *, attention_layer: int | None = None
) -> None:
    """Check a choice against the shapes of the student and the losses that are weighed.

    Args:
        terms: names of the losses with a weight above 0.
        attention_layer: the lowest decoder layer whose attention is compared; None: the first that has attention.

    Raises:
        TrainError: no such layers or targets, or a loss that reaches nothing that is trained.
        InputError: bitsandbytes is needed and missing.
    """
    if config.choice == "all":
        return  # every loss depends on something that is trained
    if config.quantization != "none":
        quantization_library(config.quantization)
    size = checkpoint.size()
    counts = trained_counts(config, size)
    if counts.left_out:
        logger.warning(
            "LoRA leaves out %d matrices that are no linear layers or belong to experts: %s",
            len(counts.left_out),
            ", ".join(group_keys(counts.left_out)[:8]),
        )
    if counts.trained == 0:
        raise TrainError(f"student.trained ({config.text}) trains no parameter of {size.name}; choose another part")
    if config.trains_projector:
        return  # every loss depends on the projector
    if found := [term for term in OF_VISION if term in terms]:
        raise TrainError(
            f"losses.{found[0]} compares vision embeddings, which only the projector changes, and student.trained "
            f"({config.text}) does not train it; set {' and '.join(f'losses.{term}' for term in found)} to 0, or train "
            f"{_with_projector(config)}"
        )
    layer = checkpoint.config.attention_layer if attention_layer is None else attention_layer
    if "attention" in terms and not _reaches_attention(config, checkpoint, layer):
        raise TrainError(
            f"losses.attention compares the attention of decoder layer {layer}, and student.trained ({config.text}) "
            "trains nothing that its queries and keys depend on; set losses.attention to 0, or train "
            f"{_with_projector(config)}"
        )


def _reaches_attention(config: TrainedConfig, checkpoint: Checkpoint, layer: int) -> bool:
    """Whether the layer has queries or keys that depend on something trained; then later layers have too."""
    if isinstance(config.choice, TrainedLayers):
        return config.choice.layers[0] <= layer
    if (lora := config.lora_settings) is None:
        return True  # the decoder with its embeddings
    for name in names_of(lora, checkpoint.size()).chosen:
        number, inner = int(name.split(".")[1]), name.split(".", 2)[2]
        if number < layer:
            return True
        if number == layer and "attn" in inner and inner.rpartition(".")[2] not in BEHIND_SCORES:
            return True
    return False


def _with_projector(config: TrainedConfig) -> str:
    if isinstance(config.choice, TrainedLayers):
        return "the projector too (student.trained.projector: true)"
    return "the projector too (student.lora.projector: true)" if config.choice == "lora" else "'all'"
