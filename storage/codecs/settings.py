"""Which codec stores which target: the part of a manifest, and of a run's configuration, that users choose."""

from copy import deepcopy
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from alignkd.storage.codecs import codec_names
from alignkd.storage.errors import StoreError

LogitsKind = Literal["full", "topk", "nucleus", "hidden", "sampled", "none"]

FROM_ALL = "from_all"
# of a target that is not stored because the teacher's stem gives it; of one that is neither stored nor given
STEM, NONE = "stem", "none"
NOT_STORED = (NONE, STEM)
STEM_TARGETS = ("attention", "vision_top", "vision_all")
LOG_PROB_CODECS = ("float32", "float16")
# settings that a kind needs beside its dtype; it takes no others
KIND_SETTINGS: dict[str, tuple[str, ...]] = {
    "full": (),
    "topk": ("top_k",),
    "nucleus": ("p", "min_entries", "max_entries"),
    "hidden": (),
    "sampled": ("num_draws",),
    "none": (),
}
DEFAULT_DTYPES = {"full": "float16", "topk": "float16", "nucleus": "float16", "hidden": "bfloat16"}
MAX_ENTRIES = 1 << 22
MAX_DRAWS = (1 << 16) - 1  # counts are uint16 at most


class LogitsCodec(BaseModel):
    """How the teacher's distribution at supervised positions is kept.

    Attributes:
        kind: `full` every logit; `topk` the likeliest `top_k` tokens and the label; `nucleus` per position the
            smallest set of tokens with mass `p`, but `min_entries` to `max_entries` of them, and the label; both with
            the exact mass of the tail; `hidden` the last hidden state (training needs the teacher's lm_head);
            `sampled` the tokens of `num_draws` draws (forward KL only).
        top_k, p, min_entries, max_entries, num_draws: of the kinds that they are named at, needed there.
        dtype: codec of the logits (`full`), log-probs (`topk`, `nucleus`) or states (`hidden`): float16, for `hidden`
            bfloat16 unless given; `sampled` has none. Kind `none` ignores it (schema 1 recorded one).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: LogitsKind = "topk"
    top_k: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    p: float | None = Field(default=None, gt=0, le=1)
    min_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    max_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    num_draws: int | None = Field(default=None, ge=1, le=MAX_DRAWS)
    dtype: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_dtype(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and settings.get("dtype") is None:
            kind = settings.get("kind", "topk")
            return {**settings, "dtype": DEFAULT_DTYPES.get(kind) if isinstance(kind, str) else None}
        return settings

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        needed = KIND_SETTINGS[self.kind]
        for name in ("top_k", "p", "min_entries", "max_entries", "num_draws"):
            value = getattr(self, name)
            if (value is not None) != (name in needed):
                kinds = " and ".join(kind for kind, names in KIND_SETTINGS.items() if name in names)
                raise ValueError(f"logits kind {self.kind} with {name} {value}: {name} belongs to kind {kinds}")
        if self.min_entries is not None and self.max_entries is not None and self.min_entries > self.max_entries:
            raise ValueError(f"logits min_entries is {self.min_entries}, above max_entries {self.max_entries}")
        self._check_dtype()
        return self

    def _check_dtype(self) -> None:
        allowed = dtypes_of_kind(self.kind)
        if self.dtype is None and self.kind not in DEFAULT_DTYPES:
            return
        if self.dtype not in allowed:
            expected = f"expected one of {', '.join(allowed)}" if allowed else "leave it out"
            raise ValueError(f"logits kind {self.kind} with dtype {self.dtype}: {expected}")


def dtypes_of_kind(kind: str) -> tuple[str, ...]:
    """The codecs that `dtype` may name for a kind of logits; none for `sampled`."""
    if kind == "sampled":
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
    """How each target is stored; `none` = not stored; `stem` = not stored, because the teacher's stem gives it.

    Attributes:
        attention: of the first layer's attention.
        attention_pairs: which queries and keys: text-query-vision, text-query-text or vision-query-vision.
        vision_top: of the focused vision tokens; `from_all` stores their index only, the embeddings are rows of
            those of `vision_all`.
        vision_all: of all vision tokens.
        logits: of the distribution at supervised positions.
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


NUCLEUS = {"kind": "nucleus", "p": 0.98, "min_entries": 32, "max_entries": 1024, "dtype": "float16"}
# Settings by name, as a run's configuration spells them: `exact` rounds to 16 bits, `compact` to 8, `stem` stores what
# the teacher's stem cannot give.
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
        "logits": NUCLEUS,
    },
    "stem": {
        **dict.fromkeys(STEM_TARGETS, STEM),
        "logits": NUCLEUS,
    },
}


def profile_codecs(name: str) -> dict[str, Any]:
    """The codec settings of a profile, as plain values to change and to give to `Codecs`.

    Raises:
        StoreError: there is no such profile.
    """
    if name not in PROFILES:
        raise StoreError(f"profile is {name!r}, expected one of {', '.join(PROFILES)}")
    return deepcopy(PROFILES[name])
