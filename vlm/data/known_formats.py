"""Recognise files of unexpected formats by their first bytes, with what to do about them."""

import re
from dataclasses import dataclass

HEAD_BYTES = 4096


@dataclass(frozen=True)
class KnownFormat:
    """The name of a format, with its article, and what to do about the file."""

    name: str
    step: str


_UNPACK = "unpack it and give the file inside"
_CONVERT = "convert it to JSON lines, with pandas: {reader}(...).to_json('data.jsonl', orient='records', lines=True)"


def _table(reader: str) -> str:
    return _CONVERT.format(reader=reader)


_FORMATS: tuple[tuple[re.Pattern[bytes], KnownFormat], ...] = tuple(
    (re.compile(pattern, re.DOTALL), KnownFormat(name, step))
    for pattern, name, step in (
        (rb"\x1f\x8b", "gzip", "unpack it with gunzip"),
        (rb"\x28\xb5\x2f\xfd", "zstd", "unpack it with unzstd"),
        (rb"\xfd7zXZ\x00", "xz", "unpack it with unxz"),
        (rb"BZh[1-9]", "bzip2", "unpack it with bunzip2"),
        (rb"\x04\x22\x4d\x18", "lz4", "unpack it with unlz4"),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
        (rb"Rar!\x1a\x07", "a rar archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"PAR1", "parquet", _table("read_parquet")),
        (rb"PARE", "encrypted parquet", "write it without encryption"),
        (rb"ARROW1\x00\x00|FEA1", "arrow", _table("read_feather")),
        (rb"\xff\xff\xff\xff.{2}\x00\x00", "an arrow stream", "write it with datasets' Dataset.to_json('data.jsonl')"),
        (rb"SQLite format 3\x00", "a SQLite database", _table("read_sql")),
        (rb"\x89HDF\r\n\x1a\n", "HDF5", _table("read_hdf")),
        (rb"Obj\x01", "avro", "convert it to JSON lines"),
        (rb"\x93NUMPY", "a NumPy array", "convert it to JSON lines"),
        (rb"\x80[\x02-\x05]", "a pickle", "write its content as JSON"),
        (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32 text", "re-encode it: iconv -f UTF-32 -t UTF-8"),
        (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "re-encode it: iconv -f UTF-16 -t UTF-8"),
        (rb"[\[{]\x00", "UTF-16 text", "re-encode it: iconv -f UTF-16LE -t UTF-8"),
        (rb"\x00[\[{]", "UTF-16 text", "re-encode it: iconv -f UTF-16BE -t UTF-8"),
        (rb"version https://git-lfs", "a pointer of Git LFS, not the file", "fetch the file with git lfs pull"),
        (rb"(?i:\s*(<!doctype html|<html|<head|<body))", "an HTML page", "download the file again"),
        (rb"(?i:\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg)", "SVG", "draw it as PNG"),
        (rb"\s*<\?xml", "XML", "download the file again"),
        (rb"%PDF-", "PDF", "save the page as PNG"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", "draw it as PNG"),
        (rb"8BPS", "a Photoshop file", "save it as PNG"),
        (rb".{4}ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "HEIC", "save it as JPEG or PNG"),
        (rb".{4}ftyp(?!avif|avis)|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video", "save the wanted frame as PNG"),
        (rb"\xff\x0a|.{4}JXL \r\n\x87\n", "JPEG XL", "save it as JPEG or PNG"),
    )
)


def known_format(head: bytes) -> KnownFormat | None:
    """The format of a file by its first `HEAD_BYTES`; None for supported images, text and unknown formats."""
    return next((known for pattern, known in _FORMATS if pattern.match(head)), None)


_TABLE_LINE = re.compile(r"\s*[\w\"' .-]+([,;\t])[\w\"' .-]*(\1[\w\"' .-]*)*\s*\Z")


def known_text(head: bytes) -> KnownFormat | None:
    """The format of text that does not start as JSON: a table with a line of column names, or YAML."""
    line = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip().partition("\n")[0]
    if (found := _TABLE_LINE.match(line)) is not None:
        kind = "TSV" if found[1] == "\t" else "CSV"
        return KnownFormat(f"a table ({kind})", _table("read_csv"))
    if line.startswith(("- ", "---")):
        return KnownFormat("YAML", "write it as JSON")
    return None
