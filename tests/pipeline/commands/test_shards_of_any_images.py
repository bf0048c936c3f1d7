"""`alignkd shards` on images of different sizes, on further targets, and on stores of schema 2."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from alignkd.pipeline.cli import main
from alignkd.pipeline.shards.view.attention.grids import square_grid, token_grids
from alignkd.pipeline.shards.view.pieces import JsonTokenizer
from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, StoreReader, open_writer
from alignkd.storage.schema.targets.named import NamedTarget

SCHEMA2 = Path(__file__).parents[2] / "storage" / "data" / "schema2"
# width and height of the images of sample 0, and the grids of their tokens
SIZES = ((60, 40), (30, 60))
GRIDS = ((4, 6), (4, 2))
HEADS, DT, V = 2, 4, 50


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["shards", *map(str, arguments)])


def image(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def record(grids: tuple[tuple[int, int], ...], *, separated: bool) -> Record:
    """Images between text; with `separated`, a text token follows every row of vision tokens."""
    tokens = tuple(rows * columns for rows, columns in grids)
    kinds = [0]
    for rows, columns in grids:
        for _ in range(rows):
            kinds += [1] * columns + [0] * separated
        kinds.append(0)
    kinds += [0, 0, 0]
    files = tuple(map(image, SIZES[: len(grids)]))
    vision, P, L = np.flatnonzero(kinds).astype(np.int32), sum(tokens), len(kinds)
    labels = np.full(L, -100, np.int32)
    labels[-1] = 7
    rng = np.random.default_rng(0)
    return Record(
        key="0" * 64,
        id="two images",
        index=0,
        conversations=[{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
        images=tuple(f"{n}.png" for n in range(len(grids))),
        image_sha256=tuple(hashlib.sha256(file).hexdigest() for file in files),
        image_bytes=files,
        input_ids=np.where(kinds, 40, 5).astype(np.int32),
        labels=labels,
        vision_positions=vision,
        tqv_query_positions=np.arange(vision[-1] + 1, L, dtype=np.int32),
        supervised_positions=np.array([L - 2], np.int32),
        tokens_of_image=tokens,
        attention=rng.random((1, L - 1 - vision[-1], HEADS, P)).astype(np.float32) / P,
        vision_embeddings=tuple(rng.normal(size=(count, DT)).astype(np.float32) for count in tokens),
        logits=rng.normal(size=(1, V)).astype(np.float32),
        more={"hidden": rng.normal(size=(P, DT)).astype(np.float32)},
    )


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    manifest = Manifest(
        fingerprint={},
        data_fingerprint={},
        shapes=Shapes(num_heads=HEADS, hidden_size=DT, vision_tokens=None, vocab_size=V),
        codecs=Codecs(
            attention="float32",
            vision_top="none",
            vision_all="float32",
            logits=LogitsCodec(kind="full", dtype="float32"),
        ),
        more=(NamedTarget(name="hidden", kind="values", codec="float32", rows="vision", layers=(3,), width=DT),),
        inputs="embed",
        num_samples=1,
        shard_size=1,
        seed=0,
    )
    writer = open_writer(tmp_path / "store", manifest)
    with writer.open_shard(0) as sink:
        sink.append(record(GRIDS, separated=False))
        sink.commit()
    return tmp_path / "store"


def test_export_has_the_public_names_and_shapes(ragged: Path, tmp_path: Path) -> None:
    out, [stored] = tmp_path / "one.safetensors", list(StoreReader(ragged))
    assert run("export", ragged, "--index", 0, "--out", out).exit_code == 0
    found = load_file(out)
    P, Q = 32, len(stored.tqv_query_positions)
    assert found["tqv_attention"].shape == (HEADS, Q, P) and found["vision_embeddings"].shape == (P, DT)
    np.testing.assert_array_equal(found["tqv_attention"], stored.tqv_attention)
    np.testing.assert_array_equal(found["vision_embeddings"], stored.vision_embeddings_float32)
    np.testing.assert_array_equal(found["hidden"], stored.more["hidden"])
    assert found["input_ids"].tolist() == stored.input_ids.tolist() and found["image_bytes_1"].tobytes() == image(
        SIZES[1]
    )
    assert run("export", ragged, "--index", 0, "--out", out, "--raw", "--force").exit_code == 0
    assert load_file(out)["image_tokens"].tolist() == [24, 8]


def test_show_and_its_picture_have_each_images_own_grid(ragged: Path, tmp_path: Path) -> None:
    shown = json.loads(run("show", ragged, "--json").stdout)
    assert shown["vision_spans"] == [[1, 24], [26, 33]] and shown["vision_grid"] is None
    assert shown["sequence_length"] == len(shown["input_ids"]) == shown["num_tokens"]
    page = run("show", ragged).stdout
    assert "vision 1..24, 26..33" in page and "#40*24" in page and "hidden" in page
    done = run("show", ragged, "--png", tmp_path / "a.png", "--head", 1, "--token", "36")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 500
    listed = run("ls", ragged)
    assert "hidden values" in listed.stdout
    targets = json.loads(run("ls", ragged, "--json").stdout)["manifest"]["targets"]
    assert next(target for target in targets if target["name"] == "hidden")["layers"] == [3]


@pytest.mark.parametrize(
    ("tokens", "size", "separated", "grid"),
    [
        ((4, 6), (60, 40), False, (4, 6)),  # the rectangle whose proportions are the image's
        ((6, 4), (40, 60), False, (6, 4)),
        ((4, 4), (60, 30), False, (4, 4)),  # a tower that sees a square: no rectangle of 16 is 2 : 1 ...
        ((2, 8), (60, 15), True, (2, 8)),
        ((13, 1), (60, 40), False, (1, 13)),  # nothing fits
        ((3, 7), (70, 30), True, (3, 7)),  # a text token after every row
        ((9, 64), (60, 60), True, (24, 24)),  # runs of one tile each are no rows
    ],
)
def test_the_grid_that_fits(tokens: tuple[int, int], size: tuple[int, int], separated: bool, grid: Any) -> None:
    manifest = Manifest.model_construct(
        shapes=Shapes(num_heads=HEADS, hidden_size=DT, vision_tokens=None, vocab_size=V)
    )
    found = record((tokens,), separated=separated)
    assert token_grids(found, manifest, [size]) == [grid]
    expected = tokens if separated else square_grid(tokens[0] * tokens[1])
    assert token_grids(found, manifest) == [expected]


@pytest.fixture
def old_store(tmp_path: Path) -> Callable[[str], Path]:
    """`old_store(name)`: a store of schema 2."""

    def unpack(name: str) -> Path:
        with tarfile.open(SCHEMA2 / "stores.tar.xz") as packed:
            members = [member for member in packed.getmembers() if member.name.split("/")[0] == name]
            packed.extractall(tmp_path / "old", members, filter="data")
        return tmp_path / "old" / name

    return unpack


@pytest.mark.parametrize("name", ["compact-zarr-embed", "exact-webdataset-reference", "tqt-zarr-embed"])
def test_every_command_reads_stores_of_schema_2(old_store: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    store = old_store(name)
    for command in (["ls"], ["show"], ["stats"], ["verify", "--deep"], ["diff", store]):
        done = run(command[0], store, *command[1:])
        assert done.exit_code == 0, (command, done.output)
    assert json.loads(run("ls", store, "--json").stdout)["manifest"]["schema_version"] == 2
    assert run("convert", store, tmp_path / "new", "--backend", "zarr").exit_code == 0
    assert json.loads(run("ls", tmp_path / "new", "--json").stdout)["manifest"]["schema_version"] == 3
    assert run("diff", store, tmp_path / "new").exit_code == 0
    for flags in ([], ["--raw"]):
        exported = []
        for path in (store, tmp_path / "new"):
            out = tmp_path / f"{len(exported)}{len(flags)}.safetensors"
            done = run("export", path, "--index", 2, "--out", out, *flags)
            assert done.exit_code == 0, done.output
            exported.append(load_file(out))
        assert exported[0].keys() == exported[1].keys()
        for tensor, values in exported[0].items():
            np.testing.assert_array_equal(values, exported[1][tensor], err_msg=tensor)


def test_pieces_of_a_tokenizer_of_transformers(ragged: Path, tmp_path: Path) -> None:
    """Byte-level BPE: a blank is shown as a mark, a part of a character by its entry."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({piece: number for number, piece in enumerate(alphabet[:47])}, []))
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<pad>"])
    file = tmp_path / "tokenizer.json"
    found.save(str(file))
    shown = json.loads(run("show", ragged, "--tokenizer", file, "--json").stdout)
    assert len(shown["input_pieces"]) == shown["num_tokens"]
    assert shown["input_pieces"][0] == alphabet[5] and shown["input_pieces"][1] == alphabet[40]
    assert shown["supervised"][0]["label_piece"] == alphabet[7]
    tokenizer = JsonTokenizer(file)
    assert len(tokenizer) == 48 and tokenizer.piece(47) == "<pad>"
    file.write_text("{}")
    done = run("show", ragged, "--tokenizer", file)
    assert done.exit_code == 1 and "is not a tokenizer.json" in done.output and done.output.count("\n") == 1


@pytest.mark.parametrize(("text", "piece"), [(" what", "\u2581what"), ("\n", "\\n"), ("Ж", "Ж")])
def test_a_piece_is_the_text_of_its_id(tmp_path: Path, text: str, piece: str) -> None:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)[0][0]
    found = Tokenizer(models.BPE({words: 0, words[0] + "x": 1}, []))
    found.decoder = decoders.ByteLevel()
    found.save(str(tmp_path / "tokenizer.json"))
    assert JsonTokenizer(tmp_path / "tokenizer.json").piece(0) == piece
