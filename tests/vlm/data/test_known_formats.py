"""Files of other formats in the place of data, images and configurations: the line names what they are."""

import bz2
import gzip
import io
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkd.vlm.data.open import load_samples
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import ImageError, InputError
from alignkd.vlm.inputs.image_file import decode_image

JSON = b'[{"id": 1, "conversations": []}]'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"


def zipped() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("data.json", JSON)
    return buffer.getvalue()


def tarred() -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        member = tarfile.TarInfo("data.json")
        member.size = len(JSON)
        archive.addfile(member, io.BytesIO(JSON))
    return buffer.getvalue()


def sqlite() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (a)")
    return connection.serialize()


FILES: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "xz in gzip": (gzip.compress(lzma.compress(JSON), mtime=0), "xz inside gzip, expected JSON inside gzip; .* gunzip"),
    "csv in gzip": (gzip.compress(b"id,image\n1,a.png\n", mtime=0), r"a table \(CSV\), .*read_csv\("),
    "cut gzip": (gzip.compress(JSON, mtime=0)[:-9], r"broken gzip \(.*\); fetch or write the file again"),
    "xz": (lzma.compress(JSON), "xz, .* unxz"),
    "bzip2": (bz2.compress(JSON), "bzip2, .* bunzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "zstd, .* unzstd"),
    "zip": (zipped, "a zip archive, .*; unpack it"),
    "tar": (tarred, "a tar archive, .*; unpack it"),
    "parquet": (b"PAR1xxxxPAR1", r"parquet, .*read_parquet\("),
    "arrow": (b"ARROW1\0\0", "arrow, "),
    "arrow stream": (b"\xff\xff\xff\xff\x58\x05\0\0", "an arrow stream, "),
    "sqlite": (sqlite, "a SQLite database, "),
    "pickle": (pickle.dumps([1]), "a pickle, "),
    "utf-16": (JSON.decode().encode("utf-16"), "UTF-16 text, .* iconv -f UTF-16 "),
    "utf-16 without mark": (JSON.decode().encode("utf-16-le"), "UTF-16 text, .* iconv -f UTF-16LE "),
    "lfs": (LFS, "a pointer of Git LFS, not the file, .*; fetch the file with git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html></html>", "an HTML page, .* download"),
    "csv": (b"id,image,question\n1,a.png,what?\n", r"a table \(CSV\), .*read_csv\("),
    "csv with mark": (b'\xef\xbb\xbf"id";"image"\n1;a.png\n', r"a table \(CSV\), "),
    "tsv": (b"id\timage\n1\ta.png\n", r"a table \(TSV\), "),
    "yaml": (b"- id: 1\n", "YAML, "),
    "wrapped": (b'{"data": [{"id": 1}]}', r"a JSON object with the list under 'data', .*jq '.\[\"data\"\]'"),
    "columns": (b'{"id": ["a", "b"], "image": []}', "a JSON object of columns .*'id'.*records"),
    "columns of pandas": (b'{"id":{"0":"a","1":"b"}}', "a JSON object of columns"),
    "by id": (b'{"a": {"image": "a.png"}}', r"a JSON object of entries .*'a'.*jq '\[\.\[\]\]'"),
    "one entry": (b'{"id": "a", "conversations": []}', r"a JSON object, expected a list .*\.jsonl"),
    "broken": (b'[{"id": "a,b", }]', "broken JSON at line 1"),
}


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("tar", "parquet")])
def test_a_data_file_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    made, said = FILES[name]
    path = tmp_path / "data.json"
    path.write_bytes(made if isinstance(made, bytes) else made())
    with pytest.raises(InputError, match=f"data.json: {said}") as refused:
        load_samples(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["gzip", "lfs", "html", "zip"])
def test_a_configuration_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    made, said = FILES.get(name, (gzip.compress(JSON, mtime=0), "gzip,"))
    path = tmp_path / "config.json"
    path.write_bytes(made if isinstance(made, bytes) else made())
    with pytest.raises(InputError, match=f"config.json: {said.partition(',')[0]}.*, expected JSON; "):
        read_json(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (LFS, "but a pointer of Git LFS, not the file; fetch the file with git lfs pull"),
        (gzip.compress(b"pixels", mtime=0), "but gzip; unpack it with gunzip"),
        (b"%PDF-1.7", "but PDF; save the page as PNG"),
        (b"\0\0\0\x20ftypisom", "but a video; save the wanted frame as PNG"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "but SVG; draw it as PNG"),
        (b"text", "; replace the file"),
    ],
)
def test_an_image_of_another_format_is_named(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=r"^not an image file that can be read \(JPEG.*\)") as refused:
        decode_image(data)
    assert str(refused.value).endswith(said)
