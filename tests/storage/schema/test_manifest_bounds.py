"""A stranger's manifest: absurd sizes, names and files are refused in one line, in bounded memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Manifest, Shapes, StoreError
from alignkd.storage.places import load_manifest
from alignkd.storage.schema.manifest import MAX_FILE_BYTES, parse_manifest
from alignkd.storage.schema.sealed_json import seal

MakeManifest = Callable[..., Manifest]
SHA = "0" * 64


def refused(document: dict[str, Any]) -> str:
    with pytest.raises(StoreError) as caught:
        parse_manifest(document, "store/manifest.json")
    message = str(caught.value)
    assert message.startswith("store/manifest.json: ") and "\n" not in message and len(message) < 800
    return message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_samples", 2**60, "num_samples: Input should be less than or equal to 134217728"),
        ("num_samples", 2**26, "67108864 and shard_size 4: 16777216 shards, at most 1048576 are allowed"),
        ("num_samples", -1, "num_samples: Input should be greater"),
        ("shard_size", 2**60, "shard_size: Input should be less"),
        ("seed", 2**64, "seed: Input should be less"),
        ("shapes.num_heads", 2**40, "shapes.num_heads: Input should be less"),
        ("shapes.num_heads", "two", "shapes.num_heads: Input should be a valid integer"),
        ("shapes.vocab_size", 2**40, "shapes.vocab_size: Input should be less"),
        ("shapes.hidden_size", 2**40, "shapes.hidden_size: Input should be less"),
        ("shapes.vision_tokens", 2**17, "shapes.vision_tokens: Input should be less"),
        ("codecs.attention", "../../x", "codecs.attention: Value error, codec is '../../x', expected one of float32"),
        (
            "codecs.attention",
            "int8_channel",
            "codec is 'int8_channel', expected one of float32, float16, bfloat16, sqrt_u8",
        ),
        ("codecs.logits", {"kind": "topk", "top_k": 2**40}, "codecs.logits.top_k: Input should be less"),
        ("codecs.logits", {"kind": ["topk"]}, "codecs.logits.kind: Input should be"),
        ("codecs.logits", "topk", "codecs.logits: Input should be a valid dictionary"),
        ("attachments", {"../evil": SHA}, "attachments.../evil.[key]: String should match pattern"),
        ("attachments", {"..": SHA}, "String should match pattern"),
        ("attachments", {"a\n": SHA}, r"attachments.a\n.[key]: String should match pattern"),
        ("attachments", {"a" * 101: SHA}, "String should have at most 100 characters"),
        ("attachments", {"a": "sha"}, "attachments.a: String should match pattern"),
        ("attachments", {f"a{number}": SHA for number in range(65)}, "at most 64 items"),
        ("fingerprint", {"weights": 3}, "fingerprint.weights: Input should be a valid string"),
        ("new\nline", 1, r"new\nline: Extra inputs are not permitted"),
        ("schema_version", True, "schema_version is True, this alignkd reads 2 and 3; open"),
        ("schema_version", "2" * 1000, "schema_version is '2222"),
        ("schema_version", 2.0, "schema_version is 2.0"),
        ("schema_version", None, "schema_version is None"),
    ],
)
def test_absurd_values_are_refused(make_manifest: MakeManifest, field: str, value: Any, message: str) -> None:
    document = make_manifest(schema_version=2 if field.startswith("codecs") else 3).model_dump()
    *outer, name = field.split(".")
    inner = document
    for part in outer:
        inner = inner[part]
    inner[name] = value
    assert message in refused(document)


@pytest.mark.parametrize("size", ["num_heads", "hidden_size"])
def test_rows_of_absurd_size_are_refused(make_manifest: MakeManifest, size: str) -> None:
    document = make_manifest().model_dump()
    document["shapes"] |= {size: 2048, "vision_tokens": 65536}
    assert f"shapes.{size} is 2048 and shapes.vision_tokens 65536: 134217728 values in a stored row" in refused(
        document
    )


def test_sizes_of_large_models_are_allowed(make_manifest: MakeManifest) -> None:
    """A 70B teacher with 2880 vision tokens, 100 M samples."""
    shapes = Shapes(num_heads=64, hidden_size=8192, vision_tokens=2880, vocab_size=256_000)
    document = make_manifest(shapes=shapes, num_samples=10**8, shard_size=1024).model_dump()
    assert parse_manifest(document, "x").num_shards == 97657


@pytest.mark.parametrize("content", ["zeros", "spaces", "deep", "digits"])
def test_a_huge_or_hostile_file_is_refused_in_bounded_memory(tmp_path: Path, content: str) -> None:
    """100 MB of nothing, and JSON that makes parsers recurse or compute: in a process that may hold 400 MiB."""
    path = tmp_path / "manifest.json"
    if content == "zeros":
        with path.open("wb") as file:
            file.truncate(100 << 20)
    else:
        text = {
            "spaces": b" " * (MAX_FILE_BYTES + 1),
            "deep": b"[" * 900_000,
            "digits": b'{"a": ' + b"9" * 900_000 + b"}",
        }
        path.write_bytes(text[content])
    child = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    line, grown = child.stdout.splitlines()
    assert line.startswith(f"{path}: ")
    assert int(grown) < 32 << 10


# prints the error's only line and by how many KiB loading grew the largest resident size
LOAD = """
import resource, sys
from pathlib import Path
from alignkd.storage import StoreError
from alignkd.storage.places import load_manifest
resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = resident()
try:
    load_manifest(Path(sys.argv[1]))
except StoreError as error:
    print(error)
print(resident() - before)
"""


def test_a_sealed_manifest_is_not_trusted_either(tmp_path: Path, make_manifest: MakeManifest) -> None:
    """The seal is a checksum, which anyone can compute."""
    document = make_manifest().model_dump() | {"num_samples": 2**60}
    (tmp_path / "manifest.json").write_bytes(seal(document))
    with pytest.raises(StoreError, match=r"manifest.json: num_samples: Input should be less than or equal to \d+; use"):
        load_manifest(tmp_path)


def test_what_is_written_is_read_with_the_same_hash(tmp_path: Path, make_manifest: MakeManifest) -> None:
    manifest = make_manifest(inputs="embed", backend="webdataset", attachments={"tokenizer.model": SHA})
    (tmp_path / "manifest.json").write_bytes(seal(json.loads(json.dumps(manifest.model_dump()))))
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(tmp_path).manifest_hash() == manifest.manifest_hash()
