"""One data set written as files of every format, by the libraries that people use."""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

FORMATS = ("data.json", "data.jsonl", "lines.json", "data.json.gz", "data.jsonl.gz", "data.parquet", "data.tar")
HOLD_IMAGES = ("data.parquet", "data.tar")


def write(path: Path, entries: Sequence[Mapping[str, Any]], images: Path) -> Path:
    """Write LLaVA-style entries to a file, whose name (one of `FORMATS`) decides the format.

    Args:
        images: folder of the images; Parquet files and tars hold them.
    """
    if path.suffix == ".parquet":
        write_parquet(path, rows(entries, images))
    elif path.suffix == ".tar":
        write_tar(path, entries, images)
    else:
        as_lines = "lines" in path.name or "jsonl" in path.name
        text = "\n".join(map(json.dumps, entries)) + "\n" if as_lines else json.dumps(list(entries), indent=1)
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return path


def rows(entries: Sequence[Mapping[str, Any]], images: Path) -> Iterator[dict[str, Any]]:
    """Rows as data sets of the hub have them: images as structs of bytes and path."""
    for entry in entries:
        held = [{"bytes": (images / name).read_bytes(), "path": name} for name in images_of(entry)]
        others = {"system": entry.get("system"), "height": 1}
        yield {"id": entry["id"], "images": held or None, "conversations": entry["conversations"], **others}


def write_parquet(path: Path, found: Iterator[dict[str, Any]], *, row_group_size: int = 3) -> Path:
    """Write rows with small row groups."""
    pq.write_table(pa.Table.from_pylist(list(found)), path, row_group_size=row_group_size)
    return path


def write_tar(path: Path, entries: Sequence[Mapping[str, Any]], images: Path) -> Path:
    """Write a tar with webdataset's own writer: `KEY.json`, `KEY.0.png`, `KEY.1.jpg`, ..."""
    with webdataset.TarWriter(str(path)) as writer:
        for number, entry in enumerate(entries):
            held = {
                f"{own}{Path(name).suffix}": (images / name).read_bytes() for own, name in enumerate(images_of(entry))
            }
            writer.write({"__key__": f"part/{number:04}", "json": dict(entry), **held})
    return path


def images_of(entry: Mapping[str, Any]) -> list[str]:
    """The images that a LLaVA-style entry names."""
    image = entry.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)
