"""The numbers of a store, counted a second time from its records."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import Codecs, EncodedArray, LogitsCodec, Record, StoreReader
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.tools.compare.sample_errors import measured_errors, sampled_positions, stated_errors
from alignkd.storage.tools.stats import general_reason, store_stats

CASES: dict[str, dict[str, Any]] = {
    "compact": {
        "codecs": Codecs(
            attention="sqrt_u8",
            vision_top="from_all",
            vision_all="int8_channel",
            logits=LogitsCodec(kind="sampled", num_draws=5),
        ),
        "inputs": "embed",
        "backend": "webdataset",
    },
    "ragged": {
        "codecs": Codecs(attention_pairs="tqt", vision_all="none", logits=LogitsCodec(kind="hidden")),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_of_columns_are_those_of_the_records(
    tmp_path: Path, make_manifest: Any, write_store: Any, case: str
) -> None:
    reader = StoreReader(write_store(tmp_path, make_manifest(**CASES[case]), quarantine=(4, 7)))
    counted = store_stats(reader)
    expected: Counter[str] = Counter()
    codec, places = RecordCodec(reader.manifest), iter(range(len(reader)))
    images = 0
    for commit in reader.commits:
        seen: set[tuple[str, ...]] = {()}
        for record in (reader[next(places)] for _ in range(commit.num_records)):
            rows = codec.encode(record, with_image=record.image_sha256 not in seen)
            images += record.image_sha256 not in seen
            seen.add(record.image_sha256)
            expected += Counter({name: values.nbytes for name, values in rows.items()})
    found = {size.column: size.num_bytes for size in counted.columns if size.column not in ("offsets", "records")}
    assert {name: size for name, size in found.items() if size} == {n: size for n, size in expected.items() if size}
    files = [path for path in tmp_path.glob("shards/*/**/*") if path.is_file()]
    assert counted.bytes == sum(path.stat().st_size for path in files)
    assert 0 < counted.overhead_bytes == counted.bytes - sum(size.num_bytes for size in counted.columns)
    assert (counted.records, counted.distinct_images) == (8, images)
    assert counted.dedup_ratio == int(reader.has_image.sum()) / images
    assert counted.tokens == reader.num_tokens.sum() and counted.supervised == reader.num_supervised.sum()
    assert counted.quarantine_reasons == [("image is damaged", 2)]


def test_reasons_are_counted_without_names() -> None:
    reasons = ["image data/a b.jpg: holds 3 bytes", "image data/c.jpg: holds 1024 bytes", "turn 'x' is empty"]
    assert Counter(map(general_reason, reasons)) == {
        general_reason(reasons[0]): 1,
        general_reason(reasons[1]): 1,
        "turn ... is empty": 1,
    }
    assert general_reason("image data/c.jpg: holds 1024 bytes") == "image ... holds N bytes"
    assert general_reason("4096 tokens, at most 2048") == general_reason("3000 tokens, at most 2048")


def test_measured_errors_lie_within_stated_ones(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    logits = LogitsCodec(kind="none")
    exact_codecs = Codecs(attention="float32", vision_top="none", vision_all="float32", logits=logits)
    codecs = Codecs(attention="sqrt_u8", vision_top="none", vision_all="int8_channel", logits=logits)
    exact_manifest, manifest = make_manifest(codecs=exact_codecs), make_manifest(codecs=codecs)

    def rounded(index: int) -> Record:
        record = make_record(exact_manifest, index)
        if not record.has_image:
            return record
        changes = {
            "attention": EncodedArray.encode("sqrt_u8", record.attention),
            "vision_embeddings": tuple(
                EncodedArray.encode("int8_channel", image) for image in record.vision_embeddings or ()
            ),
        }
        return Record(**{**record.__dict__, **changes})

    exact = StoreReader(write_store(tmp_path / "exact", exact_manifest))
    reader = StoreReader(write_store(tmp_path / "small", manifest, record_of=rounded))
    stated = {bound.field: bound for bound in stated_errors(reader, sampled_positions(reader, 10)).bounds}
    measured = {found.field: found for found in measured_errors(reader, exact, 10)}
    assert stated.keys() == measured.keys() == {"attention", "vision_embeddings"}
    for name, found in measured.items():
        assert found.beyond == 0 and 0 < found.max_abs <= stated[name].largest
        assert found.relative_l2 < stated[name].relative_l2 * 1.01
    # by hand for one field
    differences = [
        reader[place].vision_embeddings_float32 - exact[place].vision_embeddings_float32
        for place in range(len(reader))
        if reader[place].has_image
    ]
    assert measured["vision_embeddings"].max_abs == pytest.approx(max(np.abs(d).max() for d in differences), rel=1e-6)


def test_positions_are_spread(small_store: Path) -> None:
    reader = StoreReader(small_store)
    assert sampled_positions(reader, 3) == [0, 3, 7] and sampled_positions(reader, 100) == list(range(8))
    assert sampled_positions(reader, 0) == []
