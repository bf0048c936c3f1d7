"""Sizes of the official models or of a checkpoint, and the table of `alignkd models`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from alignkd.pipeline.console.printing import format_bytes
from alignkd.vlm.families.mobilevlm.model.sizes import MEMBERS, family_config, model_size
from alignkd.vlm.families.sizes import ModelSize


def official_sizes() -> list[ModelSize]:
    """The sizes of all official MobileVLM models; nothing is fetched."""
    return [model_size(name, family_config(name)) for name in MEMBERS]


def size_table(sizes: Sequence[ModelSize]) -> str:
    """One column per model, one line per figure."""
    lines: list[tuple[str, Callable[[ModelSize], str]]] = [
        ("", lambda size: Path(size.name).name),
        ("layers", lambda size: str(size.num_layers)),
        ("hidden size", lambda size: str(size.hidden_size)),
        ("heads", lambda size: str(size.num_heads)),
        ("key-value heads", lambda size: str(size.num_key_value_heads)),
        ("intermediate size", lambda size: str(size.intermediate_size)),
        ("vocabulary", lambda size: str(size.vocab_size)),
        ("max positions", lambda size: str(size.max_positions)),
        ("image pixels", lambda size: _any("by image", size.image_size, f"{size.image_size} x {size.image_size}")),
        ("vision tokens", lambda size: _any("by image", size.vision_tokens, str(size.vision_tokens))),
        ("LLM parameters", lambda size: f"{size.parameters['language_model']:,}"),
        ("vision tower", lambda size: f"{size.parameters['vision_tower']:,}"),
        ("projector", lambda size: f"{size.parameters['projector']:,}"),
        ("all parameters", lambda size: f"{size.parameters['total']:,}"),
        ("weights float32", lambda size: format_bytes(size.weight_bytes["float32"])),
        ("weights bfloat16", lambda size: format_bytes(size.weight_bytes["bfloat16"])),
        ("teacher int8", lambda size: format_bytes(size.weight_bytes["int8"])),
        ("teacher nf4", lambda size: format_bytes(size.weight_bytes["nf4"])),
    ]
    rows = [[label, *(cell(size) for size in sizes)] for label, cell in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(sizes) + 1)]
    shown = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    towers = {size.vision_tower for size in sizes}
    return "\n".join([*(line.rstrip() for line in shown), f"vision tower: {', '.join(sorted(towers))}"])


def _any(otherwise: str, value: int | None, text: str) -> str:
    return otherwise if value is None else text
