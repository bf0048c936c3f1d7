"""Which layers to store and to compare: a simple rule on the figures of the layers.

The first layer that is nearly as informative as any, and for text queries also the first attention layer, which
Align-KD uses. An early layer is preferred: a loss on it can change the input of all later layers of the student, and a
stem of few layers is small. Layers with little attention to vision tokens are left out: their rows are near 0, and so
is the loss on them.
"""

from collections.abc import Mapping, Sequence

from alignkd.storage.schema.targets.attention import LayerPairs
from alignkd.storage.tools.layers.figures import LayerFigures

# of the largest share of informative queries; without a common grid, of the largest sharpness
NEARLY = 0.75
# of the largest mass on vision tokens
LEAST_MASS = 0.1
# the loss of the demo's row `layers`, whose weight was chosen there for `tqv`
FORM, HEADS, WEIGHT = "kl", "grouped", 30


def score(figures: LayerFigures) -> float:
    """The figure that ranks layers: the share of informative queries; without a common grid the sharpness."""
    return figures.sharpness if figures.informative is None else figures.informative


def recommended_layers(layers: Sequence[LayerFigures], pairs: LayerPairs) -> tuple[int, ...]:
    """One or two layers of at least one, ascending."""
    most = max(found.vision_mass for found in layers)
    looking = [found for found in layers if found.vision_mass >= LEAST_MASS * most]
    best = max(map(score, looking))
    first = next(found.layer for found in looking if score(found) >= NEARLY * best)
    return tuple(sorted({layers[0].layer, first})) if pairs == "tqv" else (first,)


def compared_with(layers: Sequence[int], teacher: Sequence[int], student: Sequence[int]) -> dict[int, int]:
    """Layer of the student -> the teacher's layer in the same place among the attention layers, counted from the first.

    If the student has no such place, its last layers are taken; if it has too few layers, the teacher's first ones of
    `layers` are compared.

    Args:
        layers: the teacher's recommended layers, ascending.
        teacher, student: all attention layers of each model, ascending.
    """
    kept = layers[: len(student)]
    places = [list(teacher).index(layer) for layer in kept]
    last = len(student) - len(kept)
    return {student[min(place, last + number)]: kept[number] for number, place in enumerate(places)}


def store_lines(layers: Sequence[int], pairs: LayerPairs, codec: str) -> list[str]:
    """The lines of the configuration that store these layers."""
    return [
        "store:",
        f"  attention: {{layers: [{', '.join(map(str, layers))}], pairs: {pairs}, heads: all, codec: {codec}}}",
    ]


def loss_lines(compared: Mapping[int, int]) -> list[str]:
    """The lines of the configuration that compare them in training.

    Args:
        compared: layer of the student -> layer of the teacher.
    """
    layers = ", ".join(f"{student}: {teacher}" for student, teacher in compared.items())
    return [
        "train:",
        "  losses:",
        f"    attention: {WEIGHT}  # a starting value: see docs/choosing-targets.md",
        f"    attention_layers: {{{layers}}}  # student: teacher",
        f"    attention_form: {FORM}",
        f"    attention_heads: {HEADS}",
    ]
