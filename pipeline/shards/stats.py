"""`alignkd shards stats`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.layer_table import layer_table
from alignkd.pipeline.console.printing import format_bytes, format_count, json_option, print_json
from alignkd.pipeline.shards.options import LOCATION, STORE, progress_bar
from alignkd.pipeline.shards.verify import advantage_line, attention_line, labels_line, sequences_line

if TYPE_CHECKING:
    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.tools.compare.diff import FieldDifference
    from alignkd.storage.tools.compare.sample_errors import StatedErrors
    from alignkd.storage.tools.layers.stored import StoredLayers
    from alignkd.storage.tools.stats import StoreStats


@click.command()
@STORE
@click.option(
    "--sample", type=click.IntRange(min=0), default=64, show_default=True, help="Number of records for the errors."
)
@click.option("--exact", type=LOCATION, help="Measure errors against this store of the same data with exact codecs.")
@json_option
@clean_errors
def stats(store: Path | str, sample: int, exact: Path | str | None, as_json: bool) -> None:
    """Show counts, bytes and codec errors of STORE.

    Shows bytes by column and codec, numbers of records, tokens and images, and unusable samples by reason.

    For some evenly spaced records it also shows the error bound that each codec states, computed from the stored
    scales, and checks identities: rows of attention sum to at most 1, entries and tail sum to 1, each label is kept.
    With --exact the errors are measured against the other store. Of the same records it shows for each layer of stored
    attention how much falls on vision tokens, how sharp it is and how much it depends on the question.

    Example: alignkd shards stats runs/compact --exact runs/exact
    """
    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.tools.compare.sample_errors import measured_errors, sampled_positions, stated_errors
    from alignkd.storage.tools.layers.stored import stored_attention, stored_layers
    from alignkd.storage.tools.stats import store_stats

    reader = StoreReader(store, allow_incomplete=True)
    with progress_bar("count", len(reader.commits), "shard") as done:
        counted = store_stats(reader, done)
    positions = sampled_positions(reader, sample)
    with progress_bar("sample", len(positions)) as done:
        stated = stated_errors(reader, positions, done)
    with progress_bar("layers", len(stored_attention(reader.manifest)), "target") as done:
        layers = stored_layers(reader, positions, done)
    measured = None
    if exact is not None:
        with progress_bar("compare", len(positions)) as done:
            measured = measured_errors(reader, StoreReader(exact, allow_incomplete=True), sample, done)
    if as_json:
        print_json(_document(store, counted, stated, measured, layers))
        return
    click.echo(
        "\n".join(
            [
                *_counts(reader, counted),
                *_stated(stated, reader.manifest.gives_attention_by_stem),
                *_measured(measured, exact),
                *_layers(layers),
            ]
        )
    )


def _document(
    store: Path | str,
    counted: "StoreStats",
    stated: "StatedErrors",
    measured: "list[FieldDifference] | None",
    layers: "list[StoredLayers]",
) -> dict[str, Any]:
    return {
        "store": str(store),
        **asdict(counted),
        "stated": asdict(stated),
        "measured": None if measured is None else [asdict(found) for found in measured],
        "attention_layers": [asdict(found) for found in layers],
    }


def _counts(reader: "StoreReader", counted: "StoreStats") -> list[str]:
    lines = [
        f"{format_count(counted.records, 'record')} in {counted.shards} of "
        f"{format_count(reader.manifest.num_shards, 'shard')}, "
        f"{counted.tokens} tokens, {counted.queries} text queries, {counted.supervised} supervised positions",
    ]
    if counted.dedup_ratio is not None:
        lines.append(
            f"{counted.records_with_image} records with image, {counted.distinct_images} images stored "
            f"({counted.dedup_ratio:.2f} records per image)"
        )
    if counted.entries_per_position is not None:
        lines.append(f"{counted.entries_per_position:.1f} entries per supervised position")
    lines.append(f"{'column':<28}{'codec':<20}{'dtype':<7}{'bytes':>12}{'share':>8}")
    total = max(counted.bytes, 1)
    lines += [
        f"{size.column:<27} {size.codec:<20}{size.dtype:<7}{format_bytes(size.num_bytes):>12}"
        f"{size.num_bytes / total:>8.1%}"
        for size in counted.columns
        if size.num_bytes
    ]
    lines.append(f"{'padding, headers, indexes':<55}{format_bytes(counted.overhead_bytes):>12}")
    lines.append(f"{'total':<55}{format_bytes(counted.bytes):>12}")
    lines.append(f"{counted.quarantined} unusable samples")
    lines += [f"{count:>8} x {reason}" for reason, count in counted.quarantine_reasons]
    return lines


def _stated(stated: "StatedErrors", from_stem: bool) -> list[str]:
    if not stated.records:
        return []
    lines = [
        f"of {stated.records} records:",
        "stated by the codec, from the stored numbers, not measured: |decoded - exact| is at most",
    ]
    lines += [
        f"  {bound.field:<27} {bound.codec:<14}{bound.largest:.3g}, in the mean {bound.mean:.3g}, relative L2 "
        f"{bound.relative_l2:.3g}"
        for bound in stated.bounds
    ]
    lines.append("computed from the store itself:")
    if stated.largest_mass_error is not None:
        kept = stated.labels.positions - stated.labels.labels_not_kept
        lines.append(f"  entries + tail hold mass 1 within {stated.largest_mass_error:.2g}")
        lines.append(f"  the label is among the entries at {kept} of {stated.labels.positions} positions")
    lines += [f"  {attention_line(stated.attention, from_stem=from_stem)}", f"  {labels_line(stated.labels)}"]
    if stated.advantage.positions:
        lines.append(f"  {advantage_line(stated.advantage)}")
    if stated.sequences.records:
        lines.append(f"  {sequences_line(stated.sequences)}")
    return lines


def _measured(measured: "list[FieldDifference] | None", exact: Path | str | None) -> list[str]:
    if measured is None:
        return []
    if not measured:
        return [f"measured against {exact}: the stores have no record in common"]
    return [
        f"measured against {exact}:",
        *(
            f"  {found.field:<28}max abs {found.max_abs:.3g}, relative L2 {found.relative_l2 or 0.0:.3g}, "
            f"{found.beyond} records beyond the stated bounds{f' ({found.note})' if found.note else ''}"
            for found in measured
        ),
    ]


def _layers(layers: "list[StoredLayers]") -> list[str]:
    lines = []
    for found in layers:
        lines.append(f"{found.target}: {found.pairs} attention by layer, of {format_count(found.records, 'record')}")
        size = format_bytes(round(found.bytes_per_sample))
        lines += layer_table(found.layers, {each.layer: size for each in found.layers})
    return lines
