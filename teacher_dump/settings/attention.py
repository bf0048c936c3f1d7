"""The long form of `store.attention`: attention of chosen decoder layers."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from alignkd.storage.codecs import codec_names
from alignkd.storage.codecs.settings import NOT_STORED, STEM
from alignkd.storage.schema.targets.attention import LAYER_PAIRS, LayerPairs, attention_target
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.vlm.attention.layer_choice import LayerChoice, chosen_layers
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.settings import COMPLETE, Count, OneOf, Settings, described

KEY = "store.attention"


class HeadGroups(Settings):
    """Groups of neighbouring heads, of which the means are stored.

    Attributes:
        groups: their number, a divisor of the number of heads.
    """

    groups: Count


def _heads(value: Any) -> Any:
    if isinstance(value, HeadGroups) or value in ("all", "mean"):
        return value
    if isinstance(value, dict):
        return HeadGroups.model_validate(value)
    problem = f"expected all, mean or {{groups: N}}, found {described(value)}"
    raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})


class AttentionConfig(Settings):
    """Attention of chosen decoder layers.

    Attributes:
        layers: numbers of the teacher's decoder layers, from 0, or a band of its depth: `30%-70%` are the layers l of
            L with 30 <= 100 l / L < 70 that have attention.
        pairs: `tqv`, text queries after the last image to vision tokens; `vqv`, vision tokens to vision tokens; `all`,
            both.
        heads: `all` stores every head; `mean` the mean of a layer's heads; `{groups: N}` the means of N groups of
            neighbouring heads.
        codec: codec of the attention, or `stem`; None takes that of the profile, or `float16`.
        first_layer: codec of the first layer's attention as in the short form of `attention` (`tqv`, all heads), which
            the store then has too: for Align-KD beside a method that compares other layers. None: not stored.
    """

    layers: LayerChoice
    pairs: Literal["tqv", "vqv", "all"] = "tqv"
    heads: Annotated[Literal["all", "mean"] | HeadGroups, BeforeValidator(_heads)] = "all"
    codec: Annotated[str, AfterValidator(OneOf(*codec_names("attention"), STEM))] | None = None
    first_layer: Annotated[str, AfterValidator(OneOf(*codec_names("attention")))] | None = None

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        if self.codec == STEM and self.heads != "all":
            raise ValueError(
                "heads is not 'all' with codec 'stem', which stores nothing and computes every head in training; leave "
                "heads out, and set train.losses.attention_heads"
            )
        return self

    @model_validator(mode="after")
    def _check_first_layer(self) -> Self:
        if self.codec == STEM and self.first_layer is not None:
            raise ValueError(
                f"first_layer is {self.first_layer!r} with codec 'stem', which computes the first layer too; leave "
                "first_layer out"
            )
        return self

    @property
    def stored_codec(self) -> str:
        """`codec`, or the default."""
        return self.codec or "float16"

    def kinds_of_pairs(self) -> tuple[LayerPairs, ...]:
        """Each kind of `pairs` alone."""
        return LAYER_PAIRS if self.pairs == "all" else (self.pairs,)

    @property
    def has_layer_0(self) -> bool:
        """Whether decoder layer 0 is chosen, if it has attention."""
        return self.layers.startswith("0%") if isinstance(self.layers, str) else 0 in self.layers

    def most_layers(self, num_layers: int) -> int:
        """How many layers are chosen of a teacher with `num_layers` layers, if all of them have attention."""
        if not isinstance(self.layers, str):
            return len(self.layers)
        every = range(num_layers)
        return len(chosen_layers(self.layers, num_layers=num_layers, attention_layers=every, key=f"{KEY}.layers"))

    def targets(self, teacher: ModelConfig) -> tuple[NamedTarget, ...]:
        """The further targets of the store, one for each kind of pairs.

        Raises:
            InputError: a layer that the teacher does not have or that has no attention, or groups that do not divide
                its heads.
        """
        layers = chosen_layers(
            self.layers,
            num_layers=teacher.num_layers,
            attention_layers=teacher.attention_layers,
            key=f"{KEY}.layers",
        )
        heads = self.stored_heads(teacher.num_heads)
        return tuple(
            attention_target(pairs, layers=layers, heads=heads, codec=self.stored_codec)
            for pairs in self.kinds_of_pairs()
        )

    def stored_heads(self, num_heads: int) -> int:
        """Stored heads of each layer of a teacher with `num_heads` heads.

        Raises:
            InputError: groups that do not divide the heads.
        """
        if isinstance(self.heads, HeadGroups):
            if num_heads % self.heads.groups:
                raise InputError(
                    f"{KEY}.heads: {self.heads.groups} groups do not divide the teacher's {num_heads} heads; choose a "
                    "divisor"
                )
            return self.heads.groups
        return 1 if self.heads == "mean" else num_heads


def codec_or_layers(value: Any) -> Any:
    """Validate `store.attention`: a codec (the short form), or a section (the long form)."""
    if isinstance(value, AttentionConfig):
        return value
    if isinstance(value, dict):
        return AttentionConfig.model_validate(value)
    allowed = (*codec_names("attention"), *NOT_STORED)
    if value not in allowed:
        problem = f"expected one of {', '.join(allowed)}, or a section with layers, found {_found(value)}"
        raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})
    return value


def _found(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, str) else described(value)
