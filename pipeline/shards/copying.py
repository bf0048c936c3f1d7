"""`alignkd shards convert` and `alignkd shards merge`: copy the same records into another store."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import format_count, json_option, print_json, print_note
from alignkd.pipeline.shards.options import LOCATION, LayoutChoice, progress_bar

if TYPE_CHECKING:
    from alignkd.storage.tools.convert import CopyReport

MAX_NAMED = 10


@click.command()
@click.argument("source", type=LOCATION)
@click.argument("target", type=LOCATION)
@click.option("--backend", type=LayoutChoice(), required=True, help="Layout of TARGET.")
@json_option
@clean_errors
def convert(source: Path | str, target: Path | str, backend: str, as_json: bool) -> None:
    """Copy SOURCE to TARGET in another layout.

    Nothing is decoded or rounded again. The list of unusable samples and the attachments are copied too. You can stop
    the command at any time and run it again to resume. Converting back gives the bytes of the original.

    Example: alignkd shards convert runs/store runs/store-tar --backend webdataset
    """
    from alignkd.storage.places import load_manifest
    from alignkd.storage.tools.convert import convert_store

    with progress_bar("convert", load_manifest(source).num_samples, "sample") as done:
        report = convert_store(source, target, backend, done)
    if as_json:
        print_json({"target": str(target), "backend": backend, **asdict(report)})
    else:
        click.echo(_line(target, report))


@click.command()
@click.argument("stores", metavar="STORE STORE... TARGET", type=LOCATION, nargs=-1, required=True)
@click.option("--backend", type=LayoutChoice(), help="Layout of TARGET; by default the first store's.")
@click.option("--keep-first", is_flag=True, help="If two stores have the same record, keep the first store's.")
@json_option
@clean_errors
def merge(stores: tuple[Path | str, ...], backend: str | None, keep_first: bool, as_json: bool) -> None:
    """Merge stores of one teacher into TARGET.

    The stores must hold different data. The indices of the second store's samples continue those of the first, and so
    on. Stores with another teacher or other codecs are refused. Records that two stores share (by key) are refused
    too, unless --keep-first is given: then the later ones are listed as unusable. You can stop the command at any time
    and run it again to resume.

    Example: alignkd shards merge runs/captions runs/dialogs runs/all
    """
    from alignkd.storage.places import load_manifest
    from alignkd.storage.tools.merge import merge_stores

    if len(stores) < 3:
        raise click.UsageError("give at least two stores, and TARGET")
    *sources, target = stores
    total = sum(load_manifest(source).num_samples for source in sources)
    with progress_bar("merge", total, "sample") as done:
        report = merge_stores(sources, target, backend=backend, keep_first=keep_first, progress=done)
    if as_json:
        print_json({"target": str(target), **asdict(report)})
        return
    for duplicate in report.duplicates[:MAX_NAMED]:
        print_note(f"left out: sample {duplicate.index} has the key of sample {duplicate.first_index}")
    if len(report.duplicates) > MAX_NAMED:
        print_note(f"left out: {len(report.duplicates) - MAX_NAMED} more, see --json")
    click.echo(_line(target, report))


def _line(target: Path | str, report: "CopyReport") -> str:
    if not report.shards_written:
        return f"nothing left to do: {target} has all {format_count(report.num_shards, 'shard')}"
    return (
        f"wrote {report.shards_written} of {format_count(report.num_shards, 'shard')} to {target}: "
        f"{format_count(report.num_records, 'record')}, "
        f"{report.num_quarantined} unusable"
    )
