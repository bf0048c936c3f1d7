"""The figures of the layers as a table, and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from alignkd.pipeline.console.layer_table import layer_table
from alignkd.pipeline.console.printing import format_bytes, format_count
from alignkd.pipeline.layers.compare import ComparedLayers
from alignkd.pipeline.layers.recommend import WEIGHT, compared_with, loss_lines, recommended_layers, store_lines
from alignkd.pipeline.runs.teacher.shards_report import listed_unusable

NO_GRID = (
    "informative: not defined, because images have different numbers of vision tokens and so no common mean map; "
    "layers are ranked by sharpness"
)
MAY_MIX = (
    "informative: all images here have {} vision tokens, which depend on the image; if their proportions differ, the "
    "mean maps mix several grids"
)
WEIGHT_NOTE = (
    f"losses.attention {WEIGHT} is a starting value that was measured for tqv on the demo only (attention_form mse "
    "needs about 20000 there); compare several values"
)
UNKNOWN_STUDENT = "# student unknown: attention_layers takes its layers to be numbered like the teacher's"


def layers_json(compared: ComparedLayers) -> dict[str, Any]:
    """Everything but the maps."""
    chosen = recommended_layers(compared.layers, compared.pairs)
    return {
        "samples": compared.samples,
        "without_image": compared.without_image,
        "unusable": [{"index": index, "id": name, "reason": reason} for index, name, reason in compared.unusable],
        "pairs": compared.pairs,
        "num_layers": compared.num_layers,
        "vision_tokens": compared.vision_tokens,
        "common_tokens": compared.common_tokens,
        "codec": compared.codec,
        "layers": [
            {**asdict(found), "bytes_per_sample": compared.bytes_per_sample[found.layer]} for found in compared.layers
        ],
        "recommended": {
            "layers": list(chosen),
            "bytes_per_sample": _bytes_of(compared, chosen),
            "store": "\n".join(store_lines(chosen, compared.pairs, compared.codec)),
            "train": "\n".join(_loss_lines(compared, chosen)),
            "note": WEIGHT_NOTE,
        },
    }


def layers_lines(compared: ComparedLayers) -> list[str]:
    """The table, the recommended layers, and the lines of a configuration that store and compare them."""
    chosen, first = recommended_layers(compared.layers, compared.pairs), compared.layers[0]
    passed = [f"{compared.without_image} without an image"] if compared.without_image else []
    passed += [f"{len(compared.unusable)} unusable"] if compared.unusable else []
    left_out = f" ({' and '.join(passed)} left out)" if passed else ""
    sizes = {layer: format_bytes(round(size)) for layer, size in compared.bytes_per_sample.items()}
    return [
        f"{format_count(compared.samples, 'sample')}{left_out}, {first.queries} queries of {compared.pairs} attention "
        f"in each of {len(compared.layers)} attention layers (the decoder has {compared.num_layers} layers)",
        *layer_table(compared.layers, sizes, chosen),
        *_notes(compared),
        f"recommended (*): {_named(chosen)}, {format_bytes(round(_bytes_of(compared, chosen)))} per sample in "
        f"{compared.codec}; merge these lines into the sections of the configuration",
        *store_lines(chosen, compared.pairs, compared.codec),
        *_loss_lines(compared, chosen),
        f"# {WEIGHT_NOTE}",
    ]


def unusable_lines(compared: ComparedLayers) -> Iterator[str]:
    """The first few unusable samples, and how many more there are."""
    return listed_unusable(compared.unusable, more="--json lists them all")


def _loss_lines(compared: ComparedLayers, chosen: Sequence[int]) -> list[str]:
    """The lines that compare the layers; those of an unknown student are taken to be the teacher's."""
    teacher = [found.layer for found in compared.layers]
    student = compared.student_layers
    lines = loss_lines(compared_with(chosen, teacher, student or teacher))
    return lines if student else [UNKNOWN_STUDENT, *lines]


def _notes(compared: ComparedLayers) -> list[str]:
    if compared.common_tokens is None:
        return [NO_GRID]
    return [] if compared.vision_tokens is not None else [MAY_MIX.format(compared.common_tokens)]


def _bytes_of(compared: ComparedLayers, layers: Sequence[int]) -> float:
    return sum(compared.bytes_per_sample[layer] for layer in layers)


def _named(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {' and '.join(map(str, layers))}"
