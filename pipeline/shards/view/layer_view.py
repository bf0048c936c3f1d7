"""The stored attention of one record by layer: shapes and figures."""

from collections.abc import Iterable, Mapping
from typing import Any

from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.tools.layers.figures import scan_layers
from alignkd.storage.tools.layers.stored import stored_attention


def layer_rows(record: Record, manifest: Manifest) -> list[dict[str, Any]]:
    """For each stored target with attention to vision tokens and each of its layers: heads, queries and figures.

    Surprise is not among them: a single record has no mean map to compare with.
    """
    rows = []
    for target in stored_attention(manifest):
        if target.of(record) is None:
            continue
        scan = scan_layers(lambda reduce, at=target: [reduce(at.blocks(record))], target.pairs, has_grid=False)
        rows += [
            {
                "target": target.name,
                "pairs": target.pairs,
                "layer": found.layer,
                "heads": found.heads,
                "queries": found.queries,
                "vision_mass": found.vision_mass,
                "sharpness": found.sharpness,
                "sharpest_head": found.best_head,
            }
            for found in scan.layers
        ]
    return rows


def layer_line(row: Mapping[str, Any]) -> str:
    """One of `layer_rows` as a line."""
    return (
        f"  {row['pairs']} layer {row['layer']:<4}{row['heads']} heads, {row['queries']} rows, "
        f"{row['vision_mass']:.1%} on vision tokens, sharpness {row['sharpness']:.3f}, sharpest head "
        f"{row['sharpest_head']}"
    )


def layer_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A head and a line for each of `layer_rows`; nothing without any."""
    lines = [layer_line(row) for row in rows]
    return ["attention by layer", *lines] if lines else []
