"""`alignkd shards export`."""

from pathlib import Path

import click

from pipeline.console import clean_errors, json_option, print_json
from pipeline.shards.options import STORE, find_record, record_options


@click.command()
@STORE
@record_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .safetensors file.")
@click.option("--raw", is_flag=True, help="Targets as they are stored, not decoded.")
@json_option
@clean_errors
def export(
    store: Path | str, sample_id: str | None, key: str | None, index: int | None, out: Path, raw: bool, as_json: bool
) -> None:
    """Write one record of STORE as a safetensors file, encoded targets decoded to float32.

    With --raw every array is as the store holds it, by the name of its column; the file's metadata say how to decode.

    Example: alignkd shards export runs/store --id scene-000001 --out one.safetensors
    """
    if sample_id is None and key is None and index is None:
        raise click.UsageError("say which record: --id, --key or --index")
    import json

    from safetensors.numpy import save_file

    from pipeline.record_view import export_tensors, stored_parts
    from storage.columns import describe_targets
    from storage.reader import StoreReader

    reader = StoreReader(store, allow_incomplete=True)
    record = find_record(reader, sample_id=sample_id, key=key, index=index)
    metadata = {"key": record.key, "id": record.id, "index": str(record.index)}
    if raw:
        metadata["codecs"] = json.dumps(describe_targets(reader.manifest))
    tensors = (stored_parts if raw else export_tensors)(record, reader.manifest)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata=metadata)
    if as_json:
        print_json({"out": str(out), "tensors": {name: list(values.shape) for name, values in tensors.items()}})
    else:
        click.echo(f"wrote {out}: " + ", ".join(f"{name} {list(values.shape)}" for name, values in tensors.items()))
