"""Which codec stores which target: the part of a manifest and of a run's configuration that users choose."""

from copy import deepcopy
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from alignkd.storage.codecs import codec_names
from alignkd.storage.errors import StoreError

LogitsKind = Literal["full", "topk", "nucleus", "hidden", "sampled", "none"]

FROM_ALL = "from_all"
# STEM: the target is not stored, because the teacher's stem gives it. NONE: it is neither stored nor given.
STEM, NONE = "stem", "none"
NOT_STORED = (NONE, STEM)
STEM_TARGETS = ("attention", "vision_top", "vision_all")
LOG_PROB_CODECS = ("float32", "float16")
# The settings that each kind of logits takes, with their defaults. 50 draws as in random-sampling knowledge
# distillation (arXiv 2503.16870).
LOGITS_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float32"},
    "topk": {"top_k": 64, "dtype": "float16"},
    "nucleus": {"p": 0.98, "min_entries": 32, "max_entries": 1024, "dtype": "float16"},
    "hidden": {"dtype": "bfloat16"},
    "sampled": {"num_draws": 50},
    "none": {},
}
MAX_ENTRIES = 1 << 22
MAX_DRAWS = (1 << 16) - 1  # counts are uint16 at most


class LogitsCodec(BaseModel):
    """How the teacher's distribution at supervised positions is kept; `LOGITS_DEFAULTS` fills in the rest.

    Attributes:
        kind: `full` keeps every logit; `topk` the `top_k` most probable tokens; `nucleus` per position the fewest most
            probable tokens with mass `p`, but `min_entries` to `max_entries` of them; both with the label's token and
            the exact mass of the rest; `hidden` the last hidden state (the store contains the teacher's lm_head: exact
            for every divergence); `sampled` `num_draws` tokens drawn from the teacher (forward KL only); `none`
            nothing.
        top_k: tokens of `topk` at each position; default 64.
        p: minimum mass of the tokens of `nucleus`; default 0.98.
        min_entries, max_entries: minimum and maximum number of tokens of `nucleus` at a position; default 32
            and 1024.
        num_draws: draws of `sampled` at each position; default 50.
        dtype: codec of the logits (`full`, default float32), of the log-probabilities (`topk`, `nucleus`; float16)
            or of the states (`hidden`; bfloat16).
        tail: `unknown` if the mass outside the tokens of `topk` is not known; their probabilities then sum to 1. Only
            `alignkd shards import` writes such stores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: LogitsKind = "nucleus"
    top_k: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    p: float | None = Field(default=None, gt=0, le=1)
    min_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    max_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    num_draws: int | None = Field(default=None, ge=1, le=MAX_DRAWS)
    dtype: str | None = None
    tail: Literal["unknown"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        given = {name: value for name, value in settings.items() if value is not None}
        kind = given.get("kind", "nucleus")
        return {**LOGITS_DEFAULTS.get(kind, {}), **given} if isinstance(kind, str) else settings

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        problems = []
        for name in ("top_k", "p", "min_entries", "max_entries", "num_draws"):
            value = getattr(self, name)
            if value is not None and name not in LOGITS_DEFAULTS[self.kind]:
                kinds = " and ".join(kind for kind, settings in LOGITS_DEFAULTS.items() if name in settings)
                problems.append(f"{name} {value} with kind {self.kind!r}; {name} belongs to kind {kinds}")
        if self.tail is not None and self.kind != "topk":
            problems.append(f"tail {self.tail!r} with kind {self.kind!r}; an unknown tail belongs to kind topk")
        allowed = dtypes_of_kind(self.kind)
        if self.dtype is not None and self.dtype not in allowed:
            expected = f"expected one of {', '.join(allowed)}" if allowed else "leave it out"
            problems.append(f"dtype {self.dtype!r} with kind {self.kind!r}; {expected}")
        if self.min_entries is not None and self.max_entries is not None and self.min_entries > self.max_entries:
            problems.append(f"min_entries is {self.min_entries}, above max_entries {self.max_entries}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def dtypes_of_kind(kind: str) -> tuple[str, ...]:
    """The codecs that `dtype` may name for a kind of logits; empty for kinds without a dtype."""
    if "dtype" not in LOGITS_DEFAULTS[kind]:
        return ()
    return codec_names("hidden") if kind == "hidden" else LOG_PROB_CODECS


def _codec_for(target: str, *others: str) -> AfterValidator:
    def check(name: str) -> str:
        allowed = (*codec_names(target), *others)
        if name not in allowed:
            raise ValueError(f"codec is {name!r}, expected one of {', '.join(allowed)}")
        return name

    return AfterValidator(check)


class Codecs(BaseModel):
    """How each target is stored. `none`: not stored. `stem`: not stored, because the teacher's stem gives it.

    Attributes:
        attention: codec of the first layer's attention.
        attention_pairs: its queries and keys: text-query-vision, text-query-text or vision-query-vision.
        vision_top: codec of the focused vision tokens; `from_all` stores their index only, the embeddings are rows of
            those of `vision_all`.
        vision_all: codec of all vision tokens.
        logits: codec of the distribution at supervised positions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    attention: Annotated[str, _codec_for("attention", *NOT_STORED)] = "float16"
    attention_pairs: Literal["tqv", "tqt", "vqv"] = "tqv"
    vision_top: Annotated[str, _codec_for("vision_top", FROM_ALL, *NOT_STORED)] = "float16"
    vision_all: Annotated[str, _codec_for("vision_all", *NOT_STORED)] = "float16"
    logits: LogitsCodec

    @model_validator(mode="after")
    def _check_from_all(self) -> Self:
        if self.vision_top == FROM_ALL and self.vision_all in NOT_STORED:
            raise ValueError(
                f"vision_top is from_all but vision_all is {self.vision_all}: keep vision_all or choose another codec"
            )
        return self

    @property
    def from_stem(self) -> tuple[str, ...]:
        """Targets that the teacher's stem gives, by name."""
        return tuple(name for name in STEM_TARGETS if getattr(self, name) == STEM)


_NUCLEUS = {"kind": "nucleus", **LOGITS_DEFAULTS["nucleus"]}
# Settings by name, as a run's configuration spells them: `exact` rounds to 16 bits, `compact` to 8, `stem` stores only
# what the teacher's stem cannot give.
PROFILES: dict[str, dict[str, Any]] = {
    "exact": {
        "attention": "float16",
        "vision_top": FROM_ALL,
        "vision_all": "bfloat16",
        "logits": {"kind": "hidden", "dtype": "bfloat16"},
    },
    "compact": {
        "attention": "sqrt_u8",
        "vision_top": FROM_ALL,
        "vision_all": "int8_channel",
        "logits": _NUCLEUS,
    },
    "stem": {
        **dict.fromkeys(STEM_TARGETS, STEM),
        "logits": _NUCLEUS,
    },
}


def profile_codecs(name: str) -> dict[str, Any]:
    """The codec settings of a profile, as plain values that may be changed and given to `Codecs`.

    Raises:
        StoreError: there is no such profile.
    """
    if name not in PROFILES:
        raise StoreError(f"profile is {name!r}, expected one of {', '.join(PROFILES)}")
    return deepcopy(PROFILES[name])
