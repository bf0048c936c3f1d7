"""`alignkd shards ls`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import format_bytes, json_option, print_json
from alignkd.pipeline.shards.options import STORE

if TYPE_CHECKING:
    from alignkd.storage.read.listing import ShardInfo
    from alignkd.storage.schema.manifest import Manifest


@click.command()
@STORE
@click.option("--unusable", is_flag=True, help="List the unusable samples and their reasons.")
@json_option
@clean_errors
def ls(store: Path | str, unusable: bool, as_json: bool) -> None:
    """List the shards of STORE.

    Only commit records are read, so it is fast for a store of any size. --json adds the root hash, which is equal for
    two stores of the same targets, however they were written.

    Example: alignkd shards ls runs/store --unusable
    """
    if unusable:
        print_unusable(store, as_json)
        return
    from alignkd.storage.places import open_files
    from alignkd.storage.read.listing import list_shards, list_store
    from alignkd.storage.schema.manifest import read_manifest

    files = open_files(store)
    manifest = read_manifest(files)
    listing = list_store(files) if as_json else None
    infos = list_shards(store) if listing is None else listing.shards
    totals: dict[str, Any] = {
        "shards": len(infos),
        "committed": sum(info.committed for info in infos),
        "records": sum(info.num_records for info in infos),
        "quarantined": sum(info.num_quarantined for info in infos),
        "bytes": sum(info.num_bytes for info in infos),
    }
    if listing is not None:
        totals["root_hash"] = listing.root_hash
        shown = {**manifest.settings(), **manifest.model_dump()}
        print_json({"store": str(store), **totals, "manifest": shown, "shard_list": [asdict(info) for info in infos]})
        return
    lines = [f"{'shard':>8} {'records':>8} {'unusable':>8} {'tokens':>10} {'bytes':>12}", *map(_line, infos)]
    click.echo("\n".join(lines))
    click.echo(
        f"{totals['committed']} of {totals['shards']} shards, {totals['records']} records, "
        f"{totals['quarantined']} unusable, {format_bytes(totals['bytes'])}; "
        f"{manifest.backend}, codecs {codecs_line(manifest)}"
    )


def print_unusable(store: Path | str, as_json: bool) -> None:
    """Print one line, or one JSON object, for each unusable sample."""
    from alignkd.storage.read.listing import list_unusable

    listed = ({"shard": shard, **asdict(sample)} for shard, sample in list_unusable(store))
    if as_json:
        print_json(list(listed))
        return
    count = 0
    for count, entry in enumerate(listed, 1):  # noqa: B007
        click.echo(f"shard {entry['shard']}, sample {entry['id']!r} (index {entry['index']}): {entry['reason']}")
    click.echo(f"{count} unusable samples")


def codecs_line(manifest: "Manifest") -> str:
    """The codec of each target, on one line."""
    codecs, logits = manifest.codecs, manifest.codecs.logits
    settings = logits.model_dump(exclude_none=True, exclude={"kind", "dtype"})
    shown = " ".join([logits.kind, *(f"{name} {value}" for name, value in settings.items()), logits.dtype or ""])
    return (
        f"{codecs.attention_pairs} attention {codecs.attention}, vision_top {codecs.vision_top}, "
        f"vision_all {codecs.vision_all}, logits {shown.strip()}, inputs {manifest.inputs}"
        f"{''.join(f', {target.name} {target.kind}' for target in manifest.more)}"
    )


def _line(info: "ShardInfo") -> str:
    state = "" if info.committed else f"  not committed ({info.planned} planned)"
    return (
        f"{info.shard:>8} {info.num_records:>8} {info.num_quarantined:>8} {info.num_tokens:>10} "
        f"{format_bytes(info.num_bytes):>12}{state}"
    )
