"""Which parameters of a student are trained: sets `requires_grad` of each."""

from collections.abc import Iterator

from torch import nn

from alignkd.student_train.trained.lora import is_lora_parameter
from alignkd.student_train.trained.settings import TrainedConfig, TrainedLayers
from alignkd.vlm.families.family import VisionLanguageModel


def select_trained(model: VisionLanguageModel, config: TrainedConfig) -> None:
    """Set `requires_grad` of every parameter of a student; LoRA must have been added before.

    The vision tower is never trained, nor what images and text do not reach.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # quantised weights are integers
    model.freeze_vision_tower()
    if config.choice == "all":
        return
    wanted = {id(parameter) for parameter in _wanted(model, config)}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in wanted)


def _wanted(model: VisionLanguageModel, config: TrainedConfig) -> Iterator[nn.Parameter]:
    """The parameters of a choice; may contain some that are never trained."""
    layers = config.choice.layers if isinstance(config.choice, TrainedLayers) else None
    if layers is not None:
        for layer in model.decoder_layers[layers[0] : layers[1] + 1]:
            yield from layer.parameters()
    for name, parameter in model.named_parameters():
        if name.startswith(model.projector_prefixes):
            if config.trains_projector:
                yield parameter
        elif config.choice == "decoder" or (config.choice == "lora" and is_lora_parameter(name)):
            yield parameter
