"""Further targets with the attention of chosen decoder layers: one for each kind of pairs, under a name of its own.

A row `[layers * heads, C]` has the layers in rising order, each with its stored heads: `layer * heads + head`. The
columns are the vision tokens of all images of the record side by side, whatever the family.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from numpy.typing import NDArray

from alignkd.storage.codecs.settings import STEM
from alignkd.storage.schema.targets.named import NamedTarget, RowKind

LayerPairs = Literal["tqv", "vqv"]
LAYER_PAIRS: Final[tuple[LayerPairs, ...]] = ("tqv", "vqv")
NAMES: Final[dict[LayerPairs, str]] = {"tqv": "attention_layers_tqv", "vqv": "attention_layers_vqv"}
_ROWS: Final[dict[LayerPairs, RowKind]] = {"tqv": "tqv_query", "vqv": "vision"}


def attention_target(pairs: LayerPairs, *, layers: Sequence[int], heads: int, codec: str) -> NamedTarget:
    """The target of one kind of pairs.

    Args:
        pairs: `tqv`, from text queries to vision tokens, or `vqv`, from vision tokens to vision tokens.
        layers: the teacher's decoder layers, from 0, rising.
        heads: stored heads of each layer: all, 1 (their mean) or the number of groups (means in the order of the
            heads).
        codec: name of a codec, or `stem`: not stored, because the teacher's stem gives it.
    """
    return NamedTarget(
        name=NAMES[pairs],
        kind="attention",
        codec=None if codec == STEM else codec,
        layers=tuple(layers),
        rows=_ROWS[pairs],
        columns="vision",
        heads=heads,
        source="stem" if codec == STEM else "store",
    )


def with_codec(target: NamedTarget, codec: str) -> NamedTarget:
    """The same target with another codec, or `stem`."""
    is_stem = codec == STEM
    return target.model_copy(update={"codec": None if is_stem else codec, "source": "stem" if is_stem else "store"})


def attention_targets(targets: Iterable[NamedTarget]) -> dict[LayerPairs, NamedTarget]:
    """Those of the targets of a store (`Manifest.more`) that are attention of chosen layers, by their pairs."""
    by_name = {target.name: target for target in targets}
    return {pairs: by_name[name] for pairs, name in NAMES.items() if name in by_name}


def check_attention_target(target: NamedTarget) -> None:
    """Refuse a target that has one of `NAMES` and another form.

    Raises:
        ValueError: naming the target and both values.
    """
    for pairs, name in NAMES.items():
        if target.name != name:
            continue
        expected = {"kind": "attention", "rows": _ROWS[pairs], "columns": "vision", "forward_pass": "sample"}
        wrong = [field for field, value in expected.items() if getattr(target, field) != value]
        if wrong:
            found, value = getattr(target, wrong[0]), expected[wrong[0]]
            raise ValueError(f"target {name!r}: {wrong[0]} is {found}, expected {value}")
        if not target.layers or target.heads is None:
            raise ValueError(f"target {name!r}: needs layers and heads, found {list(target.layers)} and {target.heads}")


def rows_of_layer(values: NDArray[Any], target: NamedTarget, layer: int) -> NDArray[Any]:
    """One layer's share [R, heads, ...] of the numbers or scales [R, layers * heads, ...] of a target; a view.

    Args:
        layer: number of the decoder layer, one of `target.layers`.
    """
    assert target.heads is not None
    start = target.layers.index(layer) * target.heads
    return values[:, start : start + target.heads]
