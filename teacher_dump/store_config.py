"""The section `store` of the configuration: which targets are kept, and how."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from alignkd.storage.codecs import codec_names
from alignkd.storage.codecs.settings import (
    FROM_ALL,
    KIND_SETTINGS,
    MAX_DRAWS,
    MAX_ENTRIES,
    NOT_STORED,
    NUCLEUS,
    PROFILES,
    Codecs,
    LogitsCodec,
    LogitsKind,
    dtypes_of_kind,
    profile_codecs,
)
from alignkd.vlm.settings import Count, CountFromZero, OneOf, Settings, UserLocation

# Defaults of each kind's settings; `num_draws` is from random-sampling knowledge distillation (arXiv 2503.16870).
DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float32"},
    "topk": {"top_k": 64, "dtype": "float16"},
    "nucleus": {name: value for name, value in NUCLEUS.items() if name != "kind"},
    "hidden": {"dtype": "bfloat16"},
    "sampled": {"num_draws": 50},
    "none": {},
}
SETTINGS = ("top_k", "p", "min_entries", "max_entries", "num_draws", "dtype")


class LogitsConfig(Settings):
    """How the teacher's distribution at supervised positions is kept; `DEFAULTS` fills in the rest.

    Attributes:
        kind: `full` keeps every logit; `topk` the `top_k` most probable tokens; `nucleus` per position the fewest most
            probable tokens with mass `p`, but `min_entries` to `max_entries` of them; both with the label's token and
            the exact mass of the rest; `hidden` the last hidden state (the store contains the teacher's lm_head: exact
            for every divergence); `sampled` `num_draws` tokens drawn from the teacher (forward KL only); `none`
            nothing.
        top_k: tokens of `topk` at each position; default 64.
        p: minimum mass of the tokens of `nucleus`; default 0.98.
        min_entries, max_entries: minimum and maximum number of tokens of `nucleus` at a position; default 32 and 1024.
        num_draws: draws of `sampled` at each position; default 50.
        dtype: codec of the logits (`full`, default float32), of the log-probabilities (`topk`, `nucleus`; float16) or
            of the states (`hidden`; bfloat16).
    """

    kind: LogitsKind = "nucleus"
    top_k: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    p: float | None = Field(default=None, gt=0, le=1)
    min_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    max_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    num_draws: int | None = Field(default=None, ge=1, le=MAX_DRAWS)
    dtype: str | None = None

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        problems = []
        for name, value in self._given().items():
            if name != "dtype" and name not in KIND_SETTINGS[self.kind]:
                kinds = " and ".join(kind for kind, names in KIND_SETTINGS.items() if name in names)
                problems.append(f"{name} {value} with kind {self.kind!r}; {name} belongs to kind {kinds}")
        allowed = dtypes_of_kind(self.kind)
        if self.dtype is not None and self.dtype not in allowed:
            expected = f"expected one of {', '.join(allowed)}" if allowed else "leave it out"
            problems.append(f"dtype {self.dtype!r} with kind {self.kind!r}; {expected}")
        settings = self._filled_in()
        if settings.get("min_entries", 0) > settings.get("max_entries", MAX_ENTRIES):
            problems.append(f"min_entries is {settings['min_entries']}, above max_entries {settings['max_entries']}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def codec(self) -> LogitsCodec:
        """The kind with all its settings, as the manifest records it."""
        return LogitsCodec(kind=self.kind, **self._filled_in())

    def _given(self) -> dict[str, Any]:
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}

    def _filled_in(self) -> dict[str, Any]:
        return {**DEFAULTS[self.kind], **self._given()}


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
            paths and hashes.
        attention: codec of the first layer's attention.
        attention_pairs: which queries and keys: text-query-vision (the method), or for ablations text-query-text
            and vision-query-vision.
        vision_top, vision_all: codecs of the 16 vision embeddings with the highest focus score and of all; `vision_top:
            from_all` stores only the indices of the 16 and takes their embeddings from `vision_all`. `attention`,
            `vision_top` and `vision_all` may be `stem`: not stored, but computed in training from the stem, which the
            store then contains.
        logits: how the teacher's distribution at supervised positions is kept.
        shard_size: samples per shard.
        seed: seed of the order in which samples are written, and of the draws of `logits.kind: sampled`.
        on_error: `quarantine` lists an unusable sample in the store and continues; `stop` ends the run.
        max_errors: a run with more unusable samples stops; None for no limit.
    """

    path: UserLocation
    profile: Literal["exact", "compact", "stem"] | None = None
    backend: Literal["zarr", "webdataset"] = "zarr"
    inputs: Literal["reference", "embed"] = "reference"
    attention: Annotated[str, _codec_for("attention", *NOT_STORED)] = "float16"
    attention_pairs: Literal["tqv", "tqt", "vqv"] = "tqv"
    vision_top: Annotated[str, _codec_for("vision_top", FROM_ALL, *NOT_STORED)] = "float16"
    vision_all: Annotated[str, _codec_for("vision_all", *NOT_STORED)] = "float16"
    logits: LogitsConfig = LogitsConfig()
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
        return {**base, **values, "logits": _merged_logits(base["logits"], values.get("logits"))}

    @model_validator(mode="after")
    def _check_from_all(self) -> Self:
        if self.vision_top == FROM_ALL and self.vision_all in NOT_STORED:
            raise ValueError(
                f"vision_top is 'from_all', but vision_all is {self.vision_all!r} and has nothing to take it from; "
                "choose another codec for one of them"
            )
        return self

    def codecs(self) -> Codecs:
        """The codecs as the manifest records them."""
        return Codecs(
            attention=self.attention,
            attention_pairs=self.attention_pairs,
            vision_top=self.vision_top,
            vision_all=self.vision_all,
            logits=self.logits.codec(),
        )


def _merged_logits(base: dict[str, Any], given: Any) -> Any:
    """A profile's logits overridden by the given settings; another kind inherits none of them."""
    given = given.model_dump(exclude_unset=True) if isinstance(given, LogitsConfig) else given
    if given is None or (isinstance(given, dict) and given.get("kind", base["kind"]) == base["kind"]):
        return {**base, **(given or {})}
    return given
