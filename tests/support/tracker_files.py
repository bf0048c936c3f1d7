"""What trackers have stored, read from their own files."""

import json
import sqlite3
import struct
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _MAGIC = 32768, 7, 7
_FIRST_OR_WHOLE, _WHOLE_OR_LAST = (1, 2), (1, 4)


def wandb_records(output: Path) -> list[Any]:
    """The records of all offline runs below a folder, in the order in which the runs were begun."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted((output / "wandb").glob("offline-run-*/*.wandb")):
        for content in _log_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            found.append(record)
    return found


def wandb_rows(output: Path) -> list[dict[str, Any]]:
    """The history of an offline run, row by row, over all its processes."""
    rows = []
    for record in wandb_records(output):
        if record.WhichOneof("record_type") == "history":
            names = (item.key or "/".join(item.nested_key) for item in record.history.item)
            rows.append(dict(zip(names, (json.loads(item.value_json) for item in record.history.item), strict=True)))
    return rows


def trackio_rows(folder: Path, project: str) -> list[tuple[str, int, dict[str, Any]]]:
    """Run, step and figures of every row in a local database of trackio, in order."""
    with sqlite3.connect(folder / f"{project}.db") as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    return [(name, step, json.loads(metrics)) for name, step, metrics in rows]


def _log_records(content: bytes) -> list[bytes]:
    """The records of a file in blocks of 32 KiB, each piece after its checksum, length and kind."""
    found, piece, at = [], b"", _MAGIC
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:  # the end of a block is filled up
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        body = content[at + _HEADER : at + _HEADER + length]
        piece = body if kind in _FIRST_OR_WHOLE else piece + body
        if kind in _WHOLE_OR_LAST:
            found.append(piece)
        at += _HEADER + length
    return found
