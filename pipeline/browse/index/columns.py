"""The columns of the list of samples: what each one means, and whether a store gives it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.counterfactual import stores_advantage
from alignkd.storage.schema.targets.sequence import has_sequence_logprob
from alignkd.storage.tools.layers.stored import stored_attention
from alignkd.storage.tools.select.label_nll import EXACT_KINDS

Kind = Literal["integer", "number", "text"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the list.

    Attributes:
        name: key of the column in rows, filters and URLs.
        label: short name for people.
        kind: `integer` and `number` have ranges and histograms, `text` has neither.
        unit: unit of the values; empty for counts and texts.
        logarithmic: a histogram has bins of equal ratio, because values differ by factors.
        figure: the value is read from the targets, in the background.
        available: whether the store gives the column; otherwise all values are None.
        note: how the value is defined, or why the store does not give it.
        minimum, maximum: of the values that are known now; None without a value, and for texts.
    """

    name: str
    label: str
    kind: Kind
    unit: str = ""
    logarithmic: bool = False
    figure: bool = False
    available: bool = True
    note: str = ""
    minimum: float | None = None
    maximum: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The column as values of JSON."""
        return asdict(self)


# known from the tables and texts of a shard, or from the commit records
_CHEAP = (
    Column(name="position", label="Position", kind="integer", note="place among the records of the store"),
    Column(name="index", label="Index", kind="integer", note="place in the data set"),
    Column(name="id", label="Id", kind="text"),
    Column(name="key", label="Key", kind="text", note="hash of conversation, images and template"),
    Column(name="source", label="Data set", kind="text"),
    Column(name="shard", label="Shard", kind="integer"),
    Column(name="tokens", label="Tokens", kind="integer", note="token ids of the conversation"),
    Column(name="vision", label="Vision tokens", kind="integer", note="of all images of the sample"),
    Column(name="images", label="Images", kind="integer"),
    Column(name="supervised", label="Labels", kind="integer", note="supervised positions"),
    Column(name="copies", label="Copies", kind="integer", note="records with the same key, this one included"),
    Column(
        name="same_answer",
        label="Same answers",
        kind="integer",
        note="records with exactly these answers, this one included",
    ),
    Column(
        name="repetition",
        label="Repetition",
        kind="number",
        note="bytes of the answers per byte of their zlib compression; above 2.4 a text mostly repeats itself",
    ),
    Column(name="unusable", label="Unusable", kind="integer", note="1 for a sample that the dump could not use"),
    Column(name="reason", label="Reason", kind="text", note="why the sample is unusable"),
)


def columns_of(manifest: Manifest) -> tuple[Column, ...]:
    """Every column, with notes for this store; ranges are not known here."""
    return (*_CHEAP, *_figures(manifest))


def figure_names(manifest: Manifest) -> tuple[str, ...]:
    """The figures that a store gives, those that need the fewest bytes first."""
    return tuple(column.name for column in _figures(manifest) if column.available)


def _figures(manifest: Manifest) -> tuple[Column, ...]:
    return (_perplexity(manifest), _visual_advantage(manifest), *_of_distribution(manifest), _attention_mass(manifest))


def _perplexity(manifest: Manifest) -> Column:
    logits = manifest.codecs.logits
    known = has_sequence_logprob(manifest) or (
        logits.kind in EXACT_KINDS and logits.kind != "hidden" and logits.tail != "unknown"
    )
    return Column(
        name="perplexity",
        label="Perplexity",
        kind="number",
        logarithmic=True,
        figure=True,
        available=known,
        note="exp of the teacher's mean negative log-probability of a label"
        if known
        else "the store keeps neither sequence_logprob nor the log-probability of every label",
    )


def _visual_advantage(manifest: Manifest) -> Column:
    known = stores_advantage(manifest)
    return Column(
        name="visual_advantage",
        label="Visual advantage",
        kind="number",
        unit="nats",
        figure=True,
        available=known,
        note="log-probability that the image adds to a label, mean over the labels"
        if known
        else "the store has no counterfactual pass",
    )


def _of_distribution(manifest: Manifest) -> tuple[Column, ...]:
    """Figures of the stored distributions."""
    logits = manifest.codecs.logits
    kind, has_tail = logits.kind, logits.tail != "unknown"
    truncated = kind in ("topk", "nucleus")
    why = {
        "none": "the store keeps no logits",
        "hidden": "the store keeps hidden states; a figure of each sample would need a product with the whole lm_head",
        "sampled": "draws do not give it",
    }
    entropy = "mean over the supervised positions"
    if truncated:
        entropy += "; all tokens that are not stored count as one" if has_tail else "; of the stored tokens alone"
    ordered = kind == "full" or truncated
    tail = truncated and has_tail
    return (
        Column(
            name="entropy",
            label="Entropy",
            kind="number",
            unit="nats",
            figure=True,
            available=ordered or kind == "sampled",
            note=entropy if ordered or kind == "sampled" else why[kind],
        ),
        Column(
            name="worst_label",
            label="Worst label",
            kind="number",
            unit="nats",
            figure=True,
            available=kind == "full" or tail,
            note="largest negative log-probability of a label; of a label that is not stored, that of the whole tail"
            if tail
            else "largest negative log-probability of a label"
            if kind == "full"
            else why.get(kind, "the tail of the store's logits is unknown"),
        ),
        Column(
            name="agreement",
            label="Agreement",
            kind="number",
            figure=True,
            available=ordered,
            note="share of the labels that are certainly the teacher's most probable token" if ordered else why[kind],
        ),
        Column(
            name="tail_mass",
            label="Tail mass",
            kind="number",
            figure=True,
            available=tail,
            note="probability of all tokens that are not stored, mean over the supervised positions"
            if tail
            else "the store keeps whole distributions"
            if kind == "full"
            else why.get(kind, "the tail of the store's logits is unknown"),
        ),
    )


def _attention_mass(manifest: Manifest) -> Column:
    found = next(iter(stored_attention(manifest)), None)
    note = "the store keeps no attention to vision tokens"
    if found is not None:
        queries = "vision tokens" if found.pairs == "vqv" else "text"
        note = f"attention of the {queries} to the vision tokens, mean over heads and queries, layer {found.layers[0]}"
    return Column(
        name="attention_mass",
        label="Attention mass",
        kind="number",
        figure=True,
        available=found is not None,
        note=note,
    )
