"""The choice of what is trained, as a user writes it in the section `student`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from alignkd.vlm.errors import one_line
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.settings import COMPLETE, Count, CountFromZero, Positive, Settings, described

TrainedName = Literal["all", "projector", "decoder", "lora"]
NAMES = ("all", "projector", "decoder", "lora")
ALL_LINEAR = "all-linear"
LayerNumbers = Annotated[list[CountFromZero], Field(min_length=2, max_length=2, title="list of two numbers")]


def _text_or_texts(value: Any) -> Any:
    """Refuse in one line what is neither: a union has one error for each of its kinds."""
    texts = value if isinstance(value, list) else [value]
    if texts and all(isinstance(text, str) and text for text in texts):
        return value
    found = "an empty list" if value == [] else described(next((t for t in texts if not isinstance(t, str)), ""))
    problem = f"expected {ALL_LINEAR!r}, a regular expression or a list of names, found {found}"
    raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})


LoraTargets = Annotated[str | list[str], BeforeValidator(_text_or_texts), Field(title="text or list of texts")]


class TrainedLayers(Settings):
    """Some decoder layers.

    Attributes:
        layers: first and last decoder layer that is trained, from 0, both included; embeddings, last norm and head are
            not trained.
        projector: also train the projector.
    """

    layers: LayerNumbers
    projector: bool = False

    @model_validator(mode="after")
    def _is_ascending(self) -> Self:
        if self.layers[0] > self.layers[1]:
            raise ValueError(f"layers {self.layers}: the first is after the last; write the smaller number first")
        return self


class LoraSettings(Settings):
    """LoRA (arXiv 2106.09685): trained low-rank matrices beside the frozen linear layers of the decoder.

    Attributes:
        rank: r, columns of the first and rows of the second matrix.
        alpha: their product is multiplied by alpha / rank.
        dropout: share of a layer's inputs that are set to 0 before the first matrix, in training only.
        targets: linear layers that get LoRA: `all-linear`; a regular expression that matches a whole name below the
            decoder, `layers.0.self_attn.q_proj` for example; or a list of names or last parts of them, `q_proj` for
            example.
        projector: also train the projector, as a whole.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: LoraTargets = ALL_LINEAR
    projector: bool = True

    @property
    def scale(self) -> float:
        """Factor of the product of both matrices."""
        return self.alpha / self.rank


def _name_or_layers(value: Any) -> Any:
    """Refuse in one line what is neither a name nor a range of layers: a union has one error for each of its kinds."""
    if isinstance(value, TrainedLayers) or value in NAMES:
        return value
    if not isinstance(value, dict):
        names = ", ".join(NAMES)
        problem = f"expected {names} or a mapping {{layers: [from, to]}}, found {described(value)}"
        raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})
    try:
        return TrainedLayers.model_validate(value)
    except ValidationError as error:
        reason = min((_reason(dict(found)) for found in error.errors()), key=lambda text: "unknown" not in text)
        problem = f"{reason}; write {{layers: [from, to], projector: true or false}}"
        raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem}) from None


def _reason(error: Mapping[str, Any]) -> str:
    """One problem of a mapping, in plain words."""
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    if error["type"] == "value_error":
        return one_line(str(error["msg"]).removeprefix("Value error, "))
    expected = "true or false" if where == "projector" else "two numbers from 0"
    return f"{where}: expected {expected}, found {described(error['input'])}"


TrainedKey = Annotated[
    TrainedName | TrainedLayers,
    BeforeValidator(_name_or_layers),
    Field(title="`all`, `projector`, `decoder`, `lora` or a mapping"),
]


class TrainedConfig(Settings):
    """The keys `trained`, `lora` and `quantization` of the section `student`, resolved.

    Attributes:
        trained: what is trained besides the adapters; None is `lora` with settings of LoRA, else `all`.
        lora: settings of LoRA.
        quantization: precision of the decoder's frozen weights.
    """

    trained: TrainedKey | None = None
    lora: LoraSettings | None = None
    quantization: Quantization = "none"

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if (problem := problem_of_keys(self.trained, self.lora, self.quantization)) is not None:
            raise ValueError(problem)
        return self

    @property
    def choice(self) -> TrainedName | TrainedLayers:
        """`trained` with its default."""
        return self.trained or ("all" if self.lora is None else "lora")

    @property
    def lora_settings(self) -> LoraSettings | None:
        """The settings of LoRA; None if something else is trained."""
        return (self.lora or LoraSettings()) if self.choice == "lora" else None

    @property
    def trains_projector(self) -> bool:
        """Whether the projector is trained."""
        if isinstance(self.choice, TrainedLayers):
            return self.choice.projector
        return self.choice in ("all", "projector") or (self.lora_settings is not None and self.lora_settings.projector)

    @property
    def text(self) -> str:
        """The choice as one line that two runs share only if they train the same."""
        if isinstance(self.choice, TrainedLayers):
            first, last = self.choice.layers
            return f"layers {first} to {last}{_with_projector(self.choice.projector)}"
        if (lora := self.lora_settings) is None:
            return str(self.choice)
        targets = lora.targets if isinstance(lora.targets, str) else " ".join(lora.targets)
        return (
            f"lora of rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, targets {targets}"
            f"{_with_projector(lora.projector)}"
        )


def problem_of_keys(
    trained: TrainedName | TrainedLayers | None, lora: LoraSettings | None, quantization: Quantization
) -> str | None:
    """Why the three keys do not fit each other; None if they do."""
    is_lora = trained == "lora" or (trained is None and lora is not None)
    shown = f"{{layers: {trained.layers}}}" if isinstance(trained, TrainedLayers) else repr(trained or "all")
    if lora is not None and not is_lora:
        return f"trained is {shown}, but there are keys of lora; set trained to 'lora' or leave lora out"
    if quantization != "none" and not is_lora:
        return (
            f"quantization is {quantization!r}, but trained is {shown}: quantised weights cannot be trained, only LoRA "
            "beside them; set trained to 'lora' or quantization to 'none'"
        )
    return None


def _with_projector(projector: bool) -> str:
    return ", with the projector" if projector else ""
