"""docs/format.md: its reader, which knows nothing of alignkd, reads what alignkd writes."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import Codecs, LogitsCodec, StoreReader, TruncatedLogits
from alignkd.storage.schema.columns.shard import GROUPS, RECORD_FIELDS
from alignkd.storage.schema.targets.named import NamedTarget

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
HARNESS = """
import pickle, sys
sys.modules["alignkd"] = None  # importing it fails
namespace = {"__name__": "format"}
for block in pickle.load(sys.stdin.buffer):
    exec(block, namespace)
names = ("zarr_records", "tar_records", "first_json", "first_input_ids")
sys.stdout.buffer.write(pickle.dumps({name: namespace[name] for name in names}))
"""


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def run_example(folder: Path) -> "subprocess.CompletedProcess[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", HARNESS]
    return subprocess.run(command, input=pickle.dumps(blocks()), capture_output=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def made_up(
    tmp_path_factory: pytest.TempPathFactory, make_manifest: Callable[..., Any], write_store: Callable[..., Path]
) -> Path:
    """Two stores of the same records, with images that several records share and two unusable samples."""
    folder = tmp_path_factory.mktemp("format")
    logits = LogitsCodec(kind="nucleus", p=0.9, min_entries=2, max_entries=20)
    codecs = Codecs(attention="sqrt_u8", vision_top="from_all", vision_all="int8_channel", logits=logits)
    for name, backend in (("store-zarr", "zarr"), ("store-tar", "webdataset")):
        manifest = make_manifest(codecs=codecs, backend=backend, num_samples=24, shard_size=9)
        write_store(folder / name, manifest, quarantine=(4, 7))
    return folder


@pytest.fixture(scope="module")
def ragged(
    tmp_path_factory: pytest.TempPathFactory, make_manifest: Callable[..., Any], write_store: Callable[..., Path]
) -> Path:
    """The same with up to three images of different sizes, one id for each vision token, and a further target."""
    folder = tmp_path_factory.mktemp("ragged")
    logits = LogitsCodec(kind="topk", top_k=3)
    codecs = Codecs(attention="sqrt_u8", vision_top="from_all", vision_all="int8_channel", logits=logits)
    shapes = make_manifest().shapes.model_copy(update={"vision_tokens": None})
    deep = NamedTarget(
        name="deep", kind="attention", codec="sqrt_u8", rows="tqv_query", columns="vision", layers=(2, 4), heads=2
    )
    for name, backend in (("store-zarr", "zarr"), ("store-tar", "webdataset")):
        manifest = make_manifest(
            codecs=codecs, shapes=shapes, more=(deep,), backend=backend, num_samples=24, shard_size=9
        )
        write_store(folder / name, manifest, quarantine=(4, 7))
    return folder


@pytest.fixture(scope="module", params=["made_up", "ragged", "dumped"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A folder with `store-zarr` and `store-tar`."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def example(folder: Path) -> dict[str, Any]:
    done = run_example(folder)
    assert done.stderr == b""
    found: dict[str, Any] = pickle.loads(done.stdout)
    return found


@pytest.mark.parametrize(("records", "store"), [("zarr_records", "store-zarr"), ("tar_records", "store-tar")])
def test_the_example_reads_every_record(folder: Path, example: dict[str, Any], records: str, store: str) -> None:
    reader = StoreReader(folder / store)
    assert len(example[records]) == len(reader) > 6
    for found, record in zip(example[records], reader, strict=True):
        assert (found["id"], found["index"], found["conversations"]) == (record.id, record.index, record.conversations)
        for name in ("input_ids", "labels", "supervised_positions"):
            np.testing.assert_array_equal(found[name], getattr(record, name))
        assert tuple(found["image_tokens"]) == record.tokens_of_image
        if record.has_image:
            attention, vision = record.attention_float32, record.vision_embeddings_float32
            assert attention is not None and vision is not None
            np.testing.assert_allclose(found["attention"].ravel(), attention.ravel(), rtol=1e-6)
            np.testing.assert_array_equal(found["vision_embeddings"].ravel(), vision.ravel())
            np.testing.assert_array_equal(found["vision_top"], record.vision_top_embeddings_float32)
        else:
            assert not {"attention", "vision_embeddings"} & found.keys()
        logits = record.logits
        assert isinstance(logits, TruncatedLogits) and len(found["kept"]) == logits.num_positions
        np.testing.assert_allclose(found["tail"], np.exp(logits.tail_logmass))
        for n, kept in enumerate(found["kept"]):
            entries = slice(logits.offsets[n], logits.offsets[n + 1])
            assert kept == dict(zip(logits.ids[entries].tolist(), logits.logprobs[entries].tolist(), strict=True))


def test_the_example_reads_one_member(folder: Path, example: dict[str, Any]) -> None:
    record = StoreReader(folder / "store-tar")[0]
    assert example["first_json"]["key"] == record.key
    np.testing.assert_array_equal(example["first_input_ids"], record.input_ids)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("store-zarr/manifest.json", b"manifest.json is damaged"),
        ("store-zarr/commits/00000001.json", b"00000001.json is damaged"),
        ("store-tar/shards/00000002/00000002.tar", b"00000002.tar"),
    ],
)
def test_the_example_finds_a_changed_byte(made_up: Path, path: str, message: bytes) -> None:
    folder = made_up
    content = (folder / path).read_bytes()
    place = content.index(b"1", 100)
    (folder / path).write_bytes(content[:place] + b"2" + content[place + 1 :])
    try:
        done = run_example(folder)
    finally:
        (folder / path).write_bytes(content)
    assert done.returncode == 1 and b"AssertionError" in done.stderr and message in done.stderr


def test_its_examples_of_further_targets_are_allowed(make_manifest: Callable[..., Any]) -> None:
    [block] = re.findall(r"^```json\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    found = [json.loads(target) for target in block.replace("}\n{", "}\0{").split("\0")]
    targets = [NamedTarget.model_validate(target) for target in found]
    manifest = make_manifest(more=targets)
    assert len(targets) == 2 and manifest.model_dump(mode="json")["targets"][-2:] == found


def test_the_document_lists_groups_and_fields_in_order() -> None:
    text = " ".join(DOCUMENT.read_text().split())
    assert ", ".join(f"`{group}`" for group in GROUPS) in text
    assert ", ".join(f"`{field}`" for field in RECORD_FIELDS) in text
    assert re.search(r"^import alignkd|^from alignkd", "\n".join(blocks()), re.MULTILINE) is None
