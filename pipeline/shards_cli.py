"""`alignkd shards`: look into a store. Starts fast: nothing here imports torch."""

import sys
from dataclasses import asdict
from pathlib import Path

import click
from safetensors.numpy import save_file

from pipeline.console import clean_errors, fail, format_bytes, json_option, print_json
from pipeline.record_view import export_tensors, page, summary
from storage.manifest import Codecs, load_manifest
from storage.reader import StoreReader
from storage.record import Record
from storage.shard_listing import list_shards
from storage.verify import verify_store

STORE = click.argument("store", type=click.Path(path_type=Path))


@click.group()
def shards() -> None:
    """Inspect the shards of a store."""


@shards.command()
@STORE
@json_option
@clean_errors
def ls(store: Path, as_json: bool) -> None:
    """List the shards of STORE.

    Example: alignkd shards ls runs/store
    """
    manifest = load_manifest(store)
    infos = list_shards(store)
    committed = [info for info in infos if info.committed]
    totals = {
        "shards": len(infos),
        "committed": len(committed),
        "records": sum(info.num_records for info in infos),
        "quarantined": sum(info.num_quarantined for info in infos),
        "bytes": sum(info.num_bytes for info in infos),
    }
    if as_json:
        shown = manifest.model_dump(mode="json")
        print_json({"store": str(store), **totals, "manifest": shown, "shard_list": [asdict(info) for info in infos]})
        return
    click.echo(f"{'shard':>8} {'records':>8} {'listed':>7} {'tokens':>10} {'bytes':>12}")
    for info in infos:
        state = "" if info.committed else f"  not committed ({info.planned} planned)"
        click.echo(
            f"{info.shard:>8} {info.num_records:>8} {info.num_quarantined:>7} {info.num_tokens:>10} "
            f"{format_bytes(info.num_bytes):>12}{state}"
        )
    click.echo(
        f"{totals['committed']} of {totals['shards']} shards, {totals['records']} records, "
        f"{totals['quarantined']} quarantined, {format_bytes(totals['bytes'])}; codecs {_codecs(manifest.codecs)}"
    )


@shards.command()
@STORE
@click.option("--id", "sample_id", help="The user's id of the sample.")
@click.option("--key", help="Content hash of the sample.")
@click.option("--index", type=int, help="Position of the sample in the data set.")
@json_option
@clean_errors
def show(store: Path, sample_id: str | None, key: str | None, index: int | None, as_json: bool) -> None:
    """Show one record of STORE: conversation, positions, targets, the teacher's likeliest tokens.

    Example: alignkd shards show runs/store --index 0
    """
    reader = StoreReader(store, allow_incomplete=True)
    if sample_id is None and key is None and index is None:
        index = int(reader.dataset_index.min()) if len(reader) else 0
    record = find_record(reader, sample_id=sample_id, key=key, index=index)
    if as_json:
        print_json(summary(record, reader.manifest))
    else:
        click.echo(page(record, reader.manifest))


@shards.command()
@STORE
@click.option("--quick", is_flag=True, help="Only commit records, presence and sizes; do not read the bytes.")
@json_option
@clean_errors
def verify(store: Path, quick: bool, as_json: bool) -> None:
    """Read STORE again, every byte of it, and name everything that is not as committed.

    Exits with 1 when anything is wrong.

    Example: alignkd shards verify runs/store
    """
    report = verify_store(store, deep=not quick)
    if as_json:
        print_json({"store": str(store), "ok": report.ok, **asdict(report)})
    else:
        for problem in report.problems:
            click.echo(problem.message, err=True)
        verdict = "ok" if report.ok else f"{len(report.problems)} problems"
        click.echo(
            f"{store}: {verdict}; {report.num_shards} shards, {report.num_records} records, "
            f"{format_bytes(report.num_bytes)} {'looked at' if quick else 'read'}"
        )
    sys.exit(0 if report.ok else 1)


@shards.command()
@STORE
@click.option("--id", "sample_id", help="The user's id of the sample.")
@click.option("--key", help="Content hash of the sample.")
@click.option("--index", type=int, help="Position of the sample in the data set.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .safetensors file.")
@json_option
@clean_errors
def export(store: Path, sample_id: str | None, key: str | None, index: int | None, out: Path, as_json: bool) -> None:
    """Write one record of STORE as a safetensors file.

    Example: alignkd shards export runs/store --id scene-000001 --out one.safetensors
    """
    if sample_id is None and key is None and index is None:
        raise click.UsageError("say which record: --id, --key or --index")
    reader = StoreReader(store, allow_incomplete=True)
    record = find_record(reader, sample_id=sample_id, key=key, index=index)
    tensors = export_tensors(record, reader.manifest)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata={"key": record.key, "id": record.id, "index": str(record.index)})
    if as_json:
        print_json({"out": str(out), "tensors": {name: list(values.shape) for name, values in tensors.items()}})
    else:
        click.echo(f"wrote {out}: " + ", ".join(f"{name} {list(values.shape)}" for name, values in tensors.items()))


def find_record(reader: StoreReader, *, sample_id: str | None, key: str | None, index: int | None) -> Record:
    """The one record that fits; none or several end the command with what to do."""
    wanted = {"id": sample_id, "key": key, "index": index}
    shown = " ".join(f"--{name} {value}" for name, value in wanted.items() if value is not None)
    found = reader.find(id=sample_id, key=key, index=index)
    if not found:
        listed = [entry for entry in reader.quarantined if entry.id == sample_id or entry.index == index]
        why = f"; quarantined: {listed[0].reason}" if listed else "; see `alignkd shards ls` for what is there"
        fail(f"store {reader.path}: no record with {shown}{why}")
    if len(found) > 1:
        indices = ", ".join(str(int(reader.dataset_index[position])) for position in found[:8])
        fail(f"store {reader.path}: {len(found)} records with {shown}; choose one with --index ({indices})")
    return reader[found[0]]


def _codecs(codecs: Codecs) -> str:
    logits = codecs.logits
    entries = f" {logits.top_k}" if logits.top_k else ""
    return (
        f"{codecs.attention_pairs} attention {codecs.attention}, vision_top {codecs.vision_top}, "
        f"vision_all {codecs.vision_all}, logits {logits.kind}{entries} {logits.dtype}"
    )
