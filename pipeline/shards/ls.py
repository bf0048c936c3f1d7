"""`alignkd shards ls`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import format_bytes, format_count, json_option, print_json
from alignkd.pipeline.shards.options import STORE

if TYPE_CHECKING:
    from alignkd.storage.read.listing import ShardInfo
    from alignkd.storage.schema.manifest import Manifest, NamedTarget


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
    infos = list_shards(files) if listing is None else listing.shards
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
        data = {"sources": _sources(manifest), "additions": _additions(manifest)}
        listed = [asdict(info) for info in infos]
        print_json({"store": str(store), **totals, **data, "manifest": shown, "shard_list": listed})
        return
    lines = [f"{'shard':>8} {'records':>8} {'unusable':>8} {'tokens':>10} {'bytes':>12}", *map(_line, infos)]
    click.echo("\n".join(lines))
    click.echo(
        f"{totals['committed']} of {totals['shards']} shards, {totals['records']} records, "
        f"{totals['quarantined']} unusable, {format_bytes(totals['bytes'])}; "
        f"{manifest.backend}, codecs {codecs_line(manifest)}"
    )
    for line in data_lines(manifest):
        click.echo(line)


def data_lines(manifest: "Manifest") -> list[str]:
    """One line for each data set and for each addition; none for a store that lists neither."""
    lines = []
    for source in _sources(manifest):
        share = f", share {source['share']:g}" if source["share"] is not None else ""
        files = f" of {format_count(source['files'], 'file')}" if source["files"] else ""
        lines.append(f"data set {source['name']}: {format_count(source['samples'], 'sample')}{files}{share}")
    lines += [
        f"added {one['added']}: {format_count(one['samples'], 'sample')} of {', '.join(one['sources'])}"
        for one in _additions(manifest)
    ]
    return lines


def _sources(manifest: "Manifest") -> list[dict[str, Any]]:
    return [
        {"name": one.name, "samples": one.num_samples, "files": len(one.pieces), "share": one.share}
        for one in manifest.all_sources()
    ]


def _additions(manifest: "Manifest") -> list[dict[str, Any]]:
    return [
        {
            "added": one.added,
            "samples": one.num_samples,
            "sources": [source.name for source in one.sources if source.num_samples],
        }
        for one in manifest.additions or ()
    ]


def print_unusable(store: Path | str, as_json: bool) -> None:
    """Print one line, or one JSON object, for each unusable sample."""
    from alignkd.storage.places import load_manifest
    from alignkd.storage.read.listing import list_unusable

    listed = ({"shard": shard, **asdict(sample)} for shard, sample in list_unusable(store))
    if as_json:
        print_json(list(listed))
        return
    count, manifest = 0, load_manifest(store)
    for count, entry in enumerate(listed, 1):  # noqa: B007
        where = manifest.shown_index(entry["index"])
        click.echo(f"shard {entry['shard']}, sample {entry['id']!r} ({where}): {entry['reason']}")
    click.echo(f"{count} unusable samples")


def codecs_line(manifest: "Manifest") -> str:
    """The codec of each target, on one line."""
    codecs, logits = manifest.codecs, manifest.codecs.logits
    settings = logits.model_dump(exclude_none=True, exclude={"kind", "dtype"})
    shown = " ".join([logits.kind, *(f"{name} {value}" for name, value in settings.items()), logits.dtype or ""])
    return (
        f"{codecs.attention_pairs} attention {codecs.attention}, vision_top {codecs.vision_top}, "
        f"vision_all {codecs.vision_all}, logits {shown.strip()}, inputs {manifest.inputs}"
        f"{''.join(f', {_further(target)}' for target in manifest.more)}"
    )


def _further(target: "NamedTarget") -> str:
    """A further target: its name, and its codec and layers if it is attention."""
    if target.kind != "attention":
        return f"{target.name} {target.kind}"
    layers = f"layer{'' if len(target.layers) == 1 else 's'} {', '.join(map(str, target.layers))}"
    return f"{target.name} {target.codec or target.source} of {layers}"


def _line(info: "ShardInfo") -> str:
    state = "" if info.committed else f"  not committed ({info.planned} planned)"
    return (
        f"{info.shard:>8} {info.num_records:>8} {info.num_quarantined:>8} {info.num_tokens:>10} "
        f"{format_bytes(info.num_bytes):>12}{state}"
    )
