"""The section `store` of the configuration: which targets are kept, and how."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from alignkd.storage.codecs import codec_names
from alignkd.storage.codecs.settings import (
    FROM_ALL,
    NONE,
    NOT_STORED,
    PROFILES,
    STEM,
    STEM_TARGETS,
    Codecs,
    LogitsCodec,
    profile_codecs,
)
from alignkd.storage.layouts.registry import layout_names
from alignkd.storage.schema.targets.affinity import affinity_target
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.storage.schema.targets.vision import (
    LAST_HIDDEN,
    check_relations_of,
    layer_of_relations,
    relations_target,
    state_norms_target,
    vision_states_target,
)
from alignkd.teacher_dump.settings.attention import AttentionConfig, codec_or_layers
from alignkd.teacher_dump.settings.counterfactual import CounterfactualConfig
from alignkd.teacher_dump.settings.stem import StemConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.inputs.position_map import AttentionPairs
from alignkd.vlm.settings import Count, CountFromZero, OneOf, Settings, UserLocation


def _codec_for(target: str, *more: str) -> AfterValidator:
    return AfterValidator(OneOf(*codec_names(target), *more))


class StoreConfig(Settings):
    """Where the targets are stored, which are kept, and how.

    Attributes:
        path: folder or URL of the store; created, or resumed if its manifest is the same.
        profile: preset of the codecs, which explicit keys override: `exact` rounds to 16 bits, `compact` needs less
            than half of its space, `stem` keeps only logits: the teacher's stem gives the rest exactly, for students
            that share the teacher's vision tower.
        backend: physical layout of the shards.
        inputs: `embed` stores the image files, so that training needs no image folder; `reference` stores only their
            paths and hashes. None chooses `embed` where the data files hold the images themselves, else `reference`.
        attention: codec of the first layer's attention, all heads; or a section with the layers, pairs and heads that
            are stored.
        attention_pairs: which queries and keys of the first layer: text-query-vision (the method), or for ablations
            text-query-text and vision-query-vision. A section `attention` has `pairs` instead.
        vision_top, vision_all: codecs of the 16 vision embeddings with the highest focus score and of all; `vision_top:
            from_all` stores only the indices of the 16 and takes their embeddings from `vision_all`. `attention`,
            `vision_top` and `vision_all` may be `stem`: not stored, but computed in training from the stem, which the
            store then contains.
        stem: depth of the stem that the store carries.
        logits: how the teacher's distribution at supervised positions is kept.
        vision_states: codec of the last hidden states at the vision positions, or `none`; the store then contains the
            teacher's lm_head, with which they give the exact logits there.
        vision_relations: codec of the cosines of all pairs of vision tokens of each image, or `none`.
        relations_of: the states that `vision_relations` compare: `last_hidden`, the last hidden states after the final
            norm; `projector`, the projector's output; `layer_K`, the output of decoder layer K, counted from 0.
        state_norms: codec of the norms of the last hidden states at the supervised positions, or `none`.
        vision_text_affinity: codec of the cosines between the last hidden states at text queries and at vision tokens,
            or `none`.
        counterfactual: a second pass of the teacher with vision embeddings replaced; None: none.
        shard_size: samples per shard.
        seed: seed of the order in which samples are written, and of the draws of `logits.kind: sampled`.
        on_error: `quarantine` lists an unusable sample in the store and continues; `stop` ends the run.
        max_errors: a run with more unusable samples stops, each of several workers by its own count; None for no
            limit.
    """

    path: UserLocation
    profile: Literal["exact", "compact", "stem"] | None = None
    backend: Annotated[str, AfterValidator(OneOf(*layout_names()))] = "zarr"
    inputs: Literal["reference", "embed"] | None = None
    attention: Annotated[
        str | AttentionConfig, BeforeValidator(codec_or_layers), Field(title="name of a codec, `stem`, `none`")
    ] = "float16"
    attention_pairs: Literal["tqv", "tqt", "vqv"] = "tqv"
    vision_top: Annotated[str, _codec_for("vision_top", FROM_ALL, *NOT_STORED)] = "float16"
    vision_all: Annotated[str, _codec_for("vision_all", *NOT_STORED)] = "float16"
    stem: StemConfig = StemConfig()
    logits: LogitsCodec = LogitsCodec()
    vision_states: Annotated[str, _codec_for("hidden", NONE)] = NONE
    vision_relations: Annotated[str, _codec_for("unit", NONE)] = NONE
    relations_of: Annotated[str, AfterValidator(check_relations_of)] = LAST_HIDDEN
    state_norms: Annotated[str, _codec_for("hidden", NONE)] = NONE
    vision_text_affinity: Annotated[str, _codec_for("unit", NONE)] = NONE
    counterfactual: CounterfactualConfig | None = None
    shard_size: Count = 256
    seed: int = Field(default=0, ge=0, lt=2**64)
    on_error: Literal["quarantine", "stop"] = "quarantine"
    max_errors: CountFromZero | None = None

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("profile") not in tuple(PROFILES):
            return values  # the field itself reports an unknown profile
        base = profile_codecs(values["profile"])
        attention = values.get("attention", base["attention"])
        if isinstance(attention, dict) and attention.get("codec") is None:
            attention = {**attention, "codec": base["attention"]}
        logits = _merged_logits(base["logits"], values.get("logits"))
        return {**base, **values, "attention": attention, "logits": logits}

    @model_validator(mode="after")
    def _check_from_all(self) -> Self:
        if self.vision_top == FROM_ALL and self.vision_all in NOT_STORED:
            raise ValueError(
                f"vision_top is 'from_all', but vision_all is {self.vision_all!r} and has nothing to take it from; "
                "choose another codec for one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if isinstance(self.attention, AttentionConfig) and self.attention_pairs != "tqv":
            raise ValueError(
                f"attention_pairs is {self.attention_pairs!r}, but attention is a section; leave attention_pairs out "
                f"and set attention.pairs, now {self.attention.pairs!r}"
            )
        return self

    @model_validator(mode="after")
    def _check_relations_are_stored(self) -> Self:
        if self.relations_of != LAST_HIDDEN and self.vision_relations == NONE:
            raise ValueError(
                f"relations_of is {self.relations_of!r}, but vision_relations is 'none', so none are stored; set "
                "vision_relations to a codec, or leave relations_of out"
            )
        return self

    @model_validator(mode="after")
    def _check_one_number(self) -> Self:
        if self.state_norms == "int8_group":
            raise ValueError("state_norms is 'int8_group', which needs rows of several values; choose another codec")
        return self

    @model_validator(mode="after")
    def _check_tail(self) -> Self:
        if self.logits.tail is not None:
            raise ValueError(
                f"logits.tail is {self.logits.tail!r}, but a dump stores the tail; leave it out (`alignkd shards "
                "import` writes stores with an unknown one)"
            )
        return self

    def with_inputs(self, *, holds_images: bool, where: object) -> Self:
        """These settings with `inputs` decided.

        Args:
            holds_images: whether the data files hold images themselves.
            where: the data, for messages.

        Raises:
            InputError: `reference` for such files, to which training could not refer.
        """
        if holds_images and self.inputs == "reference":
            raise InputError(
                f"{where}: holds the images itself, so that store.inputs 'reference' leaves training without them; "
                "set store.inputs to embed, or leave it out"
            )
        return self.model_copy(update={"inputs": self.inputs or ("embed" if holds_images else "reference")})

    def codecs(self) -> Codecs:
        """The codecs as the manifest records them; attention of chosen layers is a further target."""
        return Codecs(
            attention=self.first_layer_codec,
            attention_pairs=self.attention_pairs,
            vision_top=self.vision_top,
            vision_all=self.vision_all,
            logits=self.logits,
        )

    @property
    def first_layer_codec(self) -> str:
        """The codec of the first layer's attention, all heads; `none` if the store does not have this target."""
        return self.attention if isinstance(self.attention, str) else self.attention.first_layer or NONE

    def further_targets(self, teacher: ModelConfig) -> tuple[NamedTarget, ...]:
        """The targets that are not among `codecs`: attention of chosen layers of this teacher, states and relations of
        vision tokens, a counterfactual pass.

        Raises:
            InputError: see `AttentionConfig.targets`; or relations that this teacher does not have.
        """
        compared = () if self.counterfactual is None else self.counterfactual.targets()
        return (*self._of_layers(teacher), *self._of_states(teacher), *compared)

    def _of_states(self, teacher: ModelConfig) -> tuple[NamedTarget, ...]:
        found = []
        if self.vision_states != NONE:
            found.append(vision_states_target(self.vision_states, teacher.hidden_size))
        if self.vision_relations != NONE:
            self._check_relations(teacher)
            found.append(relations_target(self.vision_relations, self.relations_of))
        if self.state_norms != NONE:
            found.append(state_norms_target(self.state_norms))
        if self.vision_text_affinity != NONE:
            found.append(affinity_target(self.vision_text_affinity))
        return tuple(found)

    def _check_relations(self, teacher: ModelConfig) -> None:
        layer = layer_of_relations(self.relations_of)
        if layer is not None and layer >= teacher.num_layers:
            raise InputError(
                f"store.relations_of is {self.relations_of!r}, but the teacher has {teacher.num_layers} decoder "
                f"layers, layer_0 to layer_{teacher.num_layers - 1}; choose one of them"
            )
        if teacher.vision_tokens == 1:
            raise InputError(
                f"store.vision_relations is {self.vision_relations!r}, but an image is one vision token of this "
                "teacher, so there is no pair; set it to none"
            )

    def _of_layers(self, teacher: ModelConfig) -> tuple[NamedTarget, ...]:
        return self.attention.targets(teacher) if isinstance(self.attention, AttentionConfig) else ()

    def attention_layers(self, teacher: ModelConfig) -> tuple[int, ...]:
        """The decoder layers whose attention is a target, in either form of `attention` and with any codec.

        Raises:
            InputError: see `further_targets`.
        """
        further = self._of_layers(teacher)
        return further[0].layers if further else (teacher.attention_layer,)

    def codec_of(self, target: str) -> str:
        """The codec of `attention`, `vision_top` or `vision_all`; that of the attention in both of its forms."""
        codec: str | AttentionConfig = getattr(self, target)
        return codec.stored_codec if isinstance(codec, AttentionConfig) else codec

    def computed_pairs(self) -> set[AttentionPairs]:
        """The pairs whose attention the teacher pass computes, for the store or to find the focus tokens."""
        found: set[AttentionPairs] = set() if self.vision_top in NOT_STORED else {"tqv"}
        if self.codec_of("attention") in NOT_STORED:
            return found
        if isinstance(self.attention, AttentionConfig):
            return found.union(self.attention.kinds_of_pairs(), ["tqv"] if self.attention.first_layer else [])
        return found.union([self.attention_pairs])

    def most_watched_layers(self, num_layers: int) -> int:
        """The most layers whose queries and keys the pass of a teacher with `num_layers` layers records."""
        if not isinstance(self.attention, AttentionConfig) or self.codec_of("attention") in NOT_STORED:
            return 1 if self.computed_pairs() else 0
        # the focus tokens need the first layer that has attention, most often 0
        needs_first = self.vision_top not in NOT_STORED or self.attention.first_layer is not None
        first = needs_first and not self.attention.has_layer_0
        return min(num_layers, self.attention.most_layers(num_layers) + first)

    @property
    def recorded_layers(self) -> tuple[int, ...]:
        """The decoder layers whose output the pass of the teacher records."""
        layer = None if self.vision_relations == NONE else layer_of_relations(self.relations_of)
        return () if layer is None else (layer,)

    @property
    def needs_head(self) -> bool:
        """Whether the store contains the teacher's lm_head: it keeps hidden states in place of logits."""
        return self.logits.kind == "hidden" or self.vision_states != NONE

    @property
    def from_stem(self) -> tuple[str, ...]:
        """The targets that are not stored because the teacher's stem gives them."""
        return tuple(name for name in STEM_TARGETS if self.codec_of(name) == STEM)

    def stem_depth(self, teacher: ModelConfig) -> int | None:
        """The depth of the stem that the store carries; None if it carries none.

        Raises:
            InputError: see `StemConfig.depth_of` and `further_targets`.
        """
        return self.stem.depth_of(self.from_stem, self.further_targets(teacher), teacher)


def _merged_logits(base: dict[str, Any], given: Any) -> Any:
    """A profile's logits overridden by the given settings; another kind inherits none of them."""
    if given is None or (isinstance(given, dict) and given.get("kind", base["kind"]) == base["kind"]):
        return {**base, **(given or {})}
    return given
