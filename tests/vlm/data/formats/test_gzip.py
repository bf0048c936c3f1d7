"""Gzipped JSON: unpacked once, damaged files, no room to unpack."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from alignkd.vlm.data.json.stream import JsonEntries
from alignkd.vlm.errors import InputError

ENTRIES = [{"number": number, "text": "é" * number} for number in range(50)]


def packed(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


@pytest.fixture
def entries(tmp_path: Path) -> JsonEntries:
    return JsonEntries(packed(tmp_path / "data.json.gz", json.dumps(ENTRIES)), window=64)


def test_the_content_decides_whatever_the_name(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ENTRIES))
    for name in ("data.json", "data.jsonl", "data.gz", "data"):
        assert list(JsonEntries(packed(tmp_path / name, json.dumps(ENTRIES)))) == ENTRIES
        assert list(JsonEntries(packed(tmp_path / name, lines))) == ENTRIES
    assert list(JsonEntries(packed(tmp_path / "one.jsonl.gz", '{"a": 1}'))) == [{"a": 1}]


def test_several_members_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(json.dumps(entry).encode() + b"\n") for entry in ENTRIES))
    assert list(JsonEntries(path)) == ENTRIES


def test_copies_share_what_was_unpacked(entries: JsonEntries, monkeypatch: pytest.MonkeyPatch) -> None:
    entries.path.unlink()  # no longer needed by any process, because the unpacked file is open
    copy = pickle.loads(pickle.dumps(entries))
    assert copy[49] == entries[49] == ENTRIES[49] and copy.line_of(3) == 1


def test_a_copy_that_outlives_the_first_process_unpacks_again(entries: JsonEntries) -> None:
    code = (
        "import pickle, sys; from pathlib import Path; from alignkd.vlm.data.json.stream import JsonEntries; "
        "sys.stdout.buffer.write(pickle.dumps(JsonEntries(Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(entries.path)], check=True, capture_output=True)
    copy = pickle.loads(done.stdout)
    assert list(copy) == ENTRIES
    other = pickle.loads(done.stdout)
    packed(entries.path, json.dumps(ENTRIES[:3]))
    with pytest.raises(InputError, match="changed while in use"):
        other[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_line(entries: JsonEntries, share: float) -> None:
    data = entries.path.read_bytes()
    entries.path.write_bytes(data[: max(4, int(len(data) * share))])
    with pytest.raises(InputError, match=r"data.json.gz: broken gzip \(.*\); fetch or write the file again"):
        JsonEntries(entries.path)


def test_broken_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.jsonl.gz", '{"a": 1}\n{"a" 2}\n')
    with pytest.raises(InputError, match=r"data.jsonl.gz: broken JSON at line 2, column 6"):
        JsonEntries(path, window=3)


def test_a_gzipped_tar_is_refused_with_the_step(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.json"), io.BytesIO())
    with pytest.raises(InputError, match="a tar archive inside gzip, expected JSON inside gzip; unpack it with gunzip"):
        JsonEntries(tmp_path / "data.tar.gz")


def test_no_room_to_unpack_is_one_line_with_the_folder(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.json.gz", json.dumps(["x" * 5_000_000]))
    code = (
        "import sys; from pathlib import Path; from alignkd.vlm.data.json.stream import JsonEntries\n"
        "try: JsonEntries(Path(sys.argv[1]))\nexcept ValueError as error: print(error)"
    )
    command = f'ulimit -f 1000; exec {sys.executable} -c "$0" "$1"'
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", command, code, str(path)], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith(f"{path}: cannot be unpacked into {tmp_path} (File too large); ")
    assert done.stdout.endswith("free some space there, or set TMPDIR to another folder\n")
