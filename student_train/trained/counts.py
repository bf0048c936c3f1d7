"""How many parameters a choice trains, from the shapes of a model alone, and the line that names it."""

from dataclasses import dataclass

from alignkd.student_train.errors import TrainError
from alignkd.student_train.trained.settings import ALL_LINEAR, LoraSettings, TrainedConfig, TrainedLayers
from alignkd.student_train.trained.targets import LoraNames, lora_names
from alignkd.vlm.families.sizes import ModelSize


@dataclass(frozen=True, kw_only=True)
class TrainedCounts:
    """Trained parameters of a student, its distillation adapters not counted.

    Attributes:
        projector: parameters of the projector.
        decoder: all others; those of LoRA included.
        total: parameters of the whole model; those of LoRA included.
        tensors: elements of each trained tensor of LoRA or of a range of layers; None for whole parts of the model.
        linear_layers: number of linear layers that got LoRA.
        left_out: names of matrices and linear layers that `all-linear` left out.
    """

    projector: int
    decoder: int
    total: int
    tensors: tuple[int, ...] | None = None
    linear_layers: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        """All trained parameters."""
        return self.projector + self.decoder


def trained_counts(config: TrainedConfig, size: ModelSize) -> TrainedCounts:
    """Count what `config` trains of a model of this size.

    Raises:
        TrainError: layers that the model does not have, or targets of LoRA that it does not have.
    """
    projector = size.parameters["projector"] if config.trains_projector else 0
    total = size.parameters["total"]
    if isinstance(config.choice, TrainedLayers):
        tensors = _tensors_of(config.choice, size)
        return TrainedCounts(projector=projector, decoder=sum(tensors), total=total, tensors=tensors)
    if (lora := config.lora_settings) is not None:
        names = lora_names(lora.targets, size.linear_layers)
        tensors = tuple(lora.rank * width for name in names.chosen for width in size.linear_layers[name])
        return TrainedCounts(
            projector=projector,
            decoder=sum(tensors),
            total=total + sum(tensors),
            tensors=tensors,
            linear_layers=len(names.chosen),
            left_out=names.left_out + (size.other_matrices if lora.targets == ALL_LINEAR else ()),
        )
    decoder = size.parameters["language_model"] if config.choice in ("all", "decoder") else 0
    return TrainedCounts(projector=projector, decoder=decoder, total=total)


def described_of(config: TrainedConfig, size: ModelSize) -> str:
    """What is trained of a model of this size, as a line of text.

    Raises:
        TrainError: as `trained_counts`.
    """
    return described(config, trained_counts(config, size))


def described(config: TrainedConfig, counts: TrainedCounts) -> str:
    """What is trained, as a line of text: `LoRA of rank 16 on 168 linear layers and the projector: 12 M of ...`."""
    frozen = "" if config.quantization == "none" else f", frozen decoder weights in {config.quantization}"
    return f"{_parts(config, counts)}: {_millions(counts.trained)} of {_millions(counts.total)} parameters{frozen}"


def _parts(config: TrainedConfig, counts: TrainedCounts) -> str:
    with_projector = " and the projector" if config.trains_projector else ""
    if isinstance(config.choice, TrainedLayers):
        first, last = config.choice.layers
        return (f"decoder layer {first}" if first == last else f"decoder layers {first} to {last}") + with_projector
    if (lora := config.lora_settings) is not None:
        return f"LoRA of rank {lora.rank} on {counts.linear_layers} linear layers{with_projector}"
    return {"all": "everything but the vision tower", "projector": "the projector", "decoder": "the decoder"}[
        str(config.choice)
    ]


def _millions(count: int) -> str:
    millions = count / 1e6
    return f"{millions:,.0f} M" if millions >= 100 else f"{millions:.3g} M"


def _tensors_of(layers: TrainedLayers, size: ModelSize) -> tuple[int, ...]:
    first, last = layers.layers
    if last >= len(size.layer_tensors):
        raise TrainError(
            f"student.trained: layers {first} to {last}, but {size.name} has {len(size.layer_tensors)} decoder layers; "
            f"the last one is {len(size.layer_tensors) - 1}"
        )
    return tuple(elements for layer in size.layer_tensors[first : last + 1] for elements in layer)


def names_of(lora: LoraSettings, size: ModelSize) -> LoraNames:
    """The linear layers that get LoRA.

    Raises:
        TrainError: as `lora_names`.
    """
    return lora_names(lora.targets, size.linear_layers)
