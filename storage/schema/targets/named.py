"""The named targets of a store: what each holds, for which rows of a record, and how it is stored.

Five targets have fields of their own in a `Record` and settings of their own in `Codecs`: `attention`, `vision_top`,
`vision_all` and `logits`. All others are `Record.more` by their names.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_serializer, model_validator

from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.codecs.settings import NONE, STEM, Codecs, LogitsCodec

# reserved: they are `Record` fields, and `Codecs` has their settings
ATTENTION, VISION_TOP, VISION_ALL, LOGITS = "attention", "vision_top", "vision_all", "logits"
OWN_FIELDS = (ATTENTION, VISION_TOP, VISION_ALL, LOGITS)

MAX_MORE = 64
MAX_LAYERS = 1 << 10
# ends of the names of columns that parts of targets have
_PARTS = ("scale", "columns", "counts", "logmass", "ids", "logprobs", "draws", "entropy", "logits", "states")
# such names that are no part all the same: no target is called `vision`
_NO_PARTS = ("vision_states",)
# codecs of values in [-1, 1] alone
_UNIT = tuple(name for name in codec_names("unit") if name not in codec_names("hidden"))
# names of the columns and groups that every store has
RESERVED = frozenset(
    {
        *OWN_FIELDS,
        *("offsets", "records", "record", "keys", "text", "id", "token", "input_ids", "labels", "vision", "query"),
        *("vision_positions", "tqv_query_positions", "supervised_positions", "supervised", "entry", "shown", "top"),
        *("top_scale", "image", "image_token", "image_tokens", "image_bytes", "vision_embeddings"),
        *("vision_top_embeddings", "vision_top_index"),
    }
)

TargetName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]*$", max_length=40)]
Layer = Annotated[int, Field(ge=0, lt=MAX_LAYERS)]
Kind = Literal["attention", "vision", "vision_top", "logits", "values"]
RowKind = Literal[
    "tqv_query", "text", "vision", "supervised", "record", "image", "image_token", "vision_top", "own"
]  # fmt: skip
ColumnKind = Literal["vision", "text"]
# rows that only samples with images have
OF_IMAGES: Final = ("tqv_query", "vision", "image", "image_token", "vision_top")
# rows that follow from the images alone: a shard stores them once for all records that show the same images
STORED_ONCE: Final = ("image", "image_token")


class NamedTarget(BaseModel):
    """One target of a store.

    A row has the shape `[n, width]`, or `[n, C]` where its columns are positions: n is the number of layers times the
    heads. The axis n is left out where there are no heads and at most one layer, the last axis where there is neither
    a width nor columns. Layers come first: row entry `layer * heads + head`.

    Attributes:
        name: name in `Record.more`, and of the stored column.
        kind: `attention` are probabilities. `values` are any floats: hidden states, relations, log-probabilities.
            `logits` are a distribution over the vocabulary. `vision` and `vision_top` are the projector's output.
        codec: name of a codec, or the settings of logits; None where `source` is `stem`.
        layers: layers of the decoder, from 0.
        rows: what a row belongs to: a text position that sees every image (`tqv_query`), any text position (`text`), a
            vision position, a supervised position, the record, an image, a vision token of an image or one of the
            selected (`vision_top`). `own`: a record has any number of rows.
        columns: what the last axis counts, where its length differs between records: `vision` or `text` positions.
        heads: entries of a row for each layer.
        width: length of the last axis.
        forward_pass: `sample` is the sample as it is, `without_image` a second pass over its text alone.
            `replaced_vision` is a second pass with the vision embeddings of a neutral image in place of some or all,
            `before_replacement` the pass over the sample as it is with which that one is compared.
        source: `store`, or `stem` where it is not stored because the teacher's stem gives it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: TargetName
    kind: Kind
    codec: str | LogitsCodec | None = None
    layers: tuple[Layer, ...] = Field(default=(), max_length=MAX_LAYERS)
    rows: RowKind
    columns: ColumnKind | None = None
    heads: int | None = Field(default=None, ge=1, le=1 << 20)
    width: int | None = Field(default=None, ge=1, le=1 << 26)
    forward_pass: Literal["sample", "without_image", "replaced_vision", "before_replacement"] = "sample"
    source: Literal["store", "stem"] = "store"

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers of target {self.name} are {list(self.layers)}, expected rising numbers")
        if (self.codec is None) != (self.source == "stem"):
            raise ValueError(f"codec of target {self.name} is {self.codec}, its source is {self.source}: give one")
        return self

    @model_serializer(mode="wrap")
    def _without_nulls(self, handler: Any) -> dict[str, Any]:
        found: dict[str, Any] = _without_nulls(handler(self))
        return found

    @property
    def lead(self) -> int | None:
        """n, the entries of a row before its last axis; None if it has no such axis."""
        if self.heads is None and len(self.layers) < 2:
            return None
        return max(1, len(self.layers)) * (self.heads or 1)

    @property
    def needs_image(self) -> bool:
        """Whether a sample without images has nothing to store."""
        return self.rows in OF_IMAGES or self.columns == "vision" or self.forward_pass != "sample"

    @property
    def stored_once(self) -> bool:
        """Whether records of a shard that show the same images share its rows."""
        return self.rows in STORED_ONCE

    def check_further(self) -> None:
        """Refuse a combination that `Record.more` does not hold.

        Raises:
            ValueError: naming the target and both values.
        """
        problem = self._problem()
        if problem is not None:
            raise ValueError(f"target {self.name!r}: {problem}")

    def _problem(self) -> str | None:
        kind, codec = self.kind, self.codec
        is_part = self.name.rpartition("_")[2] in _PARTS and self.name not in _NO_PARTS
        if self.name in RESERVED or is_part:
            return "its name is that of a column or of a part of one; choose another"
        of_own_settings = kind in ("vision", "vision_top") or self.rows == "vision_top"
        if of_own_settings or (self.source == "stem" and kind != "attention"):
            return f"kind {kind}, rows {self.rows}, source {self.source} belong to targets with settings of their own"
        if kind == "logits":
            if not isinstance(codec, LogitsCodec) or codec.kind == NONE or self.rows != "supervised":
                return f"kind logits needs the settings of logits and rows supervised, found {codec} and {self.rows}"
            if self.columns is not None or self.lead is not None or self.width is not None:
                return "kind logits has neither columns nor heads nor width; they follow from its settings"
            return None
        allowed = codec_names("attention") if kind == "attention" else (*codec_names("hidden"), *_UNIT)
        if codec not in allowed and self.source == "store":
            return f"codec is {str(codec)[:80]!r}, kind {kind} needs one of {', '.join(allowed)}"
        if kind == "attention" and (self.columns is None or self.heads is None):
            return f"kind attention needs columns and heads, found {self.columns} and {self.heads}"
        if self.columns is not None and self.width is not None:
            return f"width is {self.width}, but columns {self.columns} have the length that a record gives them"
        if self.forward_pass == "without_image" and ("vision" in (self.rows, self.columns) or self.stored_once):
            return f"a pass without images has no rows {self.rows} with columns {self.columns}"
        if self.stored_once and self.columns == "text":
            return f"rows {self.rows} are stored once for several texts, so they have no columns text"
        parts = get_codec(codec).part_names if isinstance(codec, str) else ()
        if len(parts) > 1 and kind == "values" and self.width is None:
            return f"codec {codec} needs a width"
        return None


def own_targets(codecs: Codecs, *, num_heads: int, hidden_size: int, attention_layer: int) -> tuple[NamedTarget, ...]:
    """The targets that have settings in `Codecs`, without those that are neither stored nor given by the stem."""
    rows: dict[str, RowKind] = {"tqv": "tqv_query", "tqt": "tqv_query", "vqv": "vision"}
    pairs = codecs.attention_pairs
    fields: dict[str, dict[str, Any]] = {
        ATTENTION: {
            "kind": "attention",
            "layers": (attention_layer,),
            "rows": rows[pairs],
            "columns": "text" if pairs == "tqt" else "vision",
            "heads": num_heads,
        },
        VISION_TOP: {"kind": "vision_top", "rows": "vision_top", "width": hidden_size},
        VISION_ALL: {"kind": "vision", "rows": "image_token", "width": hidden_size},
    }
    found = []
    for name, field in fields.items():
        codec = getattr(codecs, name)
        if codec != NONE:
            field |= {"source": "stem"} if codec == STEM else {"codec": codec}
            found.append(NamedTarget(name=name, **field))
    if codecs.logits.kind != NONE:
        found.append(NamedTarget(name=LOGITS, kind="logits", codec=codecs.logits, rows="supervised"))
    return tuple(found)


def codecs_of(targets: dict[str, NamedTarget]) -> dict[str, Any]:
    """The settings of `Codecs` that make these targets."""
    found: dict[str, Any] = {"logits": {"kind": NONE}}
    for name in (ATTENTION, VISION_TOP, VISION_ALL):
        target = targets.get(name)
        found[name] = NONE if target is None else STEM if target.source == "stem" else target.codec
    if LOGITS in targets:
        found["logits"] = targets[LOGITS].codec
    if ATTENTION in targets:
        rows, columns = targets[ATTENTION].rows, targets[ATTENTION].columns
        found["attention_pairs"] = "tqt" if columns == "text" else "vqv" if rows == "vision" else "tqv"
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}
    return value
