"""`alignkd shards export`."""

from pathlib import Path

import click

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.printing import json_option, print_json
from alignkd.pipeline.shards.options import STORE, find_record, record_options

WRITTEN_BY, COMMAND = "written_by", "alignkd shards export"


@click.command()
@STORE
@record_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help=f"A .safetensors file. {REPLACES}")
@click.option("--raw", is_flag=True, help="Write targets in their stored form, not decoded.")
@force_option
@json_option
@clean_errors
def export(
    store: Path | str,
    sample_id: str | None,
    key: str | None,
    index: int | None,
    out: Path,
    raw: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write one record of STORE to a file.

    The file is in the safetensors format; encoded targets are decoded to float32. With --raw, every array has the name
    of its column and its stored bytes; the metadata of the file describe how to decode it.

    Example: alignkd shards export runs/store --id scene-000001 --out one.safetensors
    """
    if sample_id is None and key is None and index is None:
        raise click.UsageError("name one record by --id, --key or --index")
    import json

    from safetensors.numpy import save

    from alignkd.pipeline.shards.view.record_view import export_tensors, stored_parts
    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.schema.columns.shard import describe_targets

    claim_file("--out", out, is_exported, reads=(), closed=[store], force=force)
    reader = StoreReader(store, allow_incomplete=True)
    record = find_record(reader, sample_id=sample_id, key=key, index=index)
    metadata = {WRITTEN_BY: COMMAND, "key": record.key, "id": record.id, "index": str(record.index)}
    if raw:
        metadata["codecs"] = json.dumps(describe_targets(reader.manifest.changed()))
    tensors = (stored_parts if raw else export_tensors)(record, reader.manifest)
    write_whole(out, save(tensors, metadata=metadata))
    if as_json:
        print_json({"out": str(out), "tensors": {name: list(values.shape) for name, values in tensors.items()}})
    else:
        click.echo(f"wrote {out}: " + ", ".join(f"{name} {list(values.shape)}" for name, values in tensors.items()))


def is_exported(path: Path) -> bool:
    """Whether `path` is a file that this command wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}).get(WRITTEN_BY) == COMMAND
    except (OSError, SafetensorError):  # not a safetensors file
        return False
