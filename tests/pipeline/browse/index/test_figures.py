"""The figures of records for every kind of logits and attention, against their definitions; which columns there are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scanned_store import plain_figures

from alignkd.pipeline.browse.index.columns import columns_of, figure_names
from alignkd.pipeline.browse.index.figures import figures_of
from alignkd.storage import Codecs, LogitsCodec
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.columns.shard import IMAGE_GROUPS
from alignkd.storage.schema.targets.sequence import SEQUENCE_TARGET

LOGITS: dict[str, tuple[LogitsCodec, set[str]]] = {
    "none": (LogitsCodec(kind="none"), set()),
    "full": (LogitsCodec(kind="full", dtype="float16"), {"entropy", "worst_label", "agreement"}),
    "topk": (LogitsCodec(kind="topk", top_k=3), {"entropy", "worst_label", "agreement", "tail_mass"}),
    "nucleus": (
        LogitsCodec(kind="nucleus", p=0.8, min_entries=1, max_entries=9),
        {"entropy", "worst_label", "agreement", "tail_mass"},
    ),
    "sampled": (LogitsCodec(kind="sampled", num_draws=20), {"entropy"}),
    "hidden": (LogitsCodec(kind="hidden", dtype="float16"), set()),
}


def read(store: Path) -> tuple[StoreReader, list[dict[str, float]]]:
    """The figures of every record of a store."""
    reader = StoreReader(store)
    names = figure_names(reader.manifest)
    rows = []
    for commit in reader.commits:
        shard = OpenShard(reader.files, reader.manifest, RecordCodec(reader.manifest), commit)
        found = figures_of(shard, reader.manifest, names, lambda: False)
        assert found is not None and found[1] == []
        rows += [{name: float(found[0][name][number]) for name in names} for number in range(len(shard))]
    return reader, rows


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
@pytest.mark.parametrize("kind", LOGITS)
def test_of_logits(kind: str, backend: str, tmp_path: Path, make_manifest: Any, write_store: Any) -> None:
    codec, names = LOGITS[kind]
    codecs = Codecs(attention="none", vision_top="none", vision_all="none", logits=codec)
    manifest = make_manifest(codecs=codecs, backend=backend, more=(SEQUENCE_TARGET,), num_samples=6)
    assert set(figure_names(manifest)) == names | {"perplexity"}
    reader, rows = read(write_store(tmp_path / "store", manifest))
    for record, row in zip(reader, rows, strict=True):
        expected = plain_figures(record)
        for name in {*names, "perplexity"} - ({"agreement"} if kind in ("topk", "nucleus") else set()):
            assert row[name] == pytest.approx(expected[name], rel=2e-5), name


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
@pytest.mark.parametrize(
    ("codec", "pairs"), [("float16", "tqv"), ("sqrt_u8", "tqv"), ("float32", "vqv"), ("float16", "tqt")]
)
def test_of_attention(
    codec: str, pairs: str, backend: str, tmp_path: Path, make_manifest: Any, write_store: Any
) -> None:
    codecs = Codecs(
        attention=codec, attention_pairs=pairs, vision_top="none", vision_all="none", logits=LogitsCodec(kind="none")
    )
    manifest = make_manifest(codecs=codecs, backend=backend, num_samples=6)
    assert figure_names(manifest) == (() if pairs == "tqt" else ("attention_mass",))
    reader, rows = read(write_store(tmp_path / "store", manifest))
    for record, row in zip(reader, rows, strict=True):
        if row:
            expected = plain_figures(record)["attention_mass"]
            assert (
                np.isnan(row["attention_mass"])
                if expected is None
                else row == pytest.approx({"attention_mass": expected}, rel=1e-5)
            )


def test_images_of_different_sizes(tmp_path: Path, make_manifest: Any, write_store: Any) -> None:
    """Up to three images in a record, whose attention is one block."""
    shapes = make_manifest().shapes.model_copy(update={"vision_tokens": None})
    reader, rows = read(write_store(tmp_path / "store", make_manifest(shapes=shapes)))
    masses = np.array([plain_figures(record)["attention_mass"] for record in reader], np.float64)  # None: NaN
    np.testing.assert_allclose([row["attention_mass"] for row in rows], masses, rtol=1e-5)
    assert 0 < np.isnan(masses).sum() < len(masses)


def test_a_part_of_a_record_is_read_without_the_rest(
    tmp_path: Path, make_large_manifest: Any, write_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar gives single members, also of an image that another record has stored."""
    from alignkd.storage.layouts.tar.reader import TarSource

    manifest = make_large_manifest(backend="webdataset", more=(SEQUENCE_TARGET,))
    reader = StoreReader(write_store(tmp_path / "store", manifest))
    monkeypatch.setattr(TarSource, "_read", lambda *_: pytest.fail("a whole record was read"))
    codec, position = RecordCodec(manifest), 0
    for commit in reader.commits:
        shard = OpenShard(reader.files, manifest, codec, commit)
        for number in range(len(shard)):
            numbers = shard.tables.numbers(number)
            few = shard.source.rows(number, numbers, whole=False)
            monkeypatch.undo()
            every = shard.source.rows(number, numbers)
            for column in codec.columns:
                if column.name not in ("offsets", "records"):
                    one, other = few(column.name), every(column.name)
                    assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
            texts = shard.texts()
            assert reader[position].conversations[1]["value"] in texts[number]
            position += 1
    assert {column.group for column in codec.columns} & set(IMAGE_GROUPS)


def test_a_damaged_member_is_named(tmp_path: Path, make_manifest: Any, write_store: Any) -> None:
    reader = StoreReader(write_store(tmp_path / "store", make_manifest(backend="webdataset")))
    shard = OpenShard(reader.files, reader.manifest, RecordCodec(reader.manifest), reader.commits[0])
    offset = int(shard.source.index.places[1, 0]["offset"])  # type: ignore[attr-defined]
    (tar,) = (tmp_path / "store" / "shards" / "00000000").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[offset + 5] ^= 1
    tar.write_bytes(data)
    with pytest.raises(Exception, match=r"record 1, member json: crc32c is [0-9a-f]{8}, indexed [0-9a-f]{8}; restore"):
        shard.texts()


def test_every_column_says_what_it_is_or_why_it_is_missing(make_manifest: Any) -> None:
    for codec, _ in LOGITS.values():
        codecs = Codecs(attention="none", vision_top="none", vision_all="none", logits=codec)
        for column in columns_of(make_manifest(codecs=codecs)):
            assert column.note or column.available, column.name
