"""Records that no writer writes, with right checksums: each is one line, and the others are shown."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browsed_store
import numpy as np
import pytest
from browsed_store import made_store
from click.testing import CliRunner
from made_records import make_manifest, make_record, write_store

from alignkd.pipeline.browse.records.comparison import compare
from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.pipeline.browse.web.excerpts import excerpts
from alignkd.pipeline.shards.show import show
from alignkd.pipeline.shards.view.attention.attention_map import input_number, query_named
from alignkd.pipeline.shards.view.attention.image_files import image_file
from alignkd.pipeline.shards.view.attention.picture import drawable
from alignkd.storage import Codecs, CorruptStoreError, LogitsCodec, Record, StoreReader, TruncatedLogits, verify_store
from alignkd.storage.layouts import rows
from alignkd.vlm.errors import InputError, SampleError

__all__ = ["make_manifest", "make_record", "write_store"]

Change = Callable[[Record], dict[str, Any]]


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StoreReader]:
    """hostile(change, text=None): a store whose first written record is changed."""
    real, sample_text, changed = browsed_store.made_record, rows.sample_text, []

    def store(change: Change, text: str | None = None) -> StoreReader:
        def made(index: int, **options: Any) -> Record:
            record = real(index, **options)
            if changed or not record.has_image:
                return record
            changed.append(index)
            monkeypatch.setattr(rows, "sample_text", sample_text if text is None else _once(text))
            return Record.trusted(record.__dict__ | change(record))

        def _once(text: str) -> Callable[..., str]:
            def given(*fields: Any) -> str:
                monkeypatch.setattr(rows, "sample_text", sample_text)
                return text

            return given

        monkeypatch.setattr(browsed_store, "made_record", made)
        return StoreReader(made_store(tmp_path / "store", samples=20))

    return store


def nothing(record: Record) -> dict[str, Any]:
    return {}


TEXTS = {
    "deep": '{"conversations":' + "[" * 3000 + "]" * 3000 + ',"image":null,"image_sha256":null}',
    "no keys": "{}",
    "no JSON": "{]",
    "a number": "7",
    "numbers for images": '{"conversations":[],"image":5,"image_sha256":[5,6]}',
    "turns of another form": '{"conversations":["a",5],"image":null,"image_sha256":null}',
    "no list of turns": '{"conversations":{"a":5},"image":null,"image_sha256":null}',
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_sample(name: str, hostile: Any) -> None:
    reader = hostile(nothing, TEXTS[name])
    views = RecordViews(reader)
    place = int(np.flatnonzero(reader.has_image)[0])
    with pytest.raises(CorruptStoreError, match="is not a sample") as raised:
        views.record_page(place)
    assert "\n" not in str(raised.value)
    found = excerpts(reader, range(len(reader)))
    assert found[place] is None and all(text for at, text in enumerate(found) if at != place)
    assert views.record_page((place + 1) % len(reader)).key
    problems = verify_store(reader.path, deep=True).problems
    assert len(problems) == 1 and "is not a sample" in str(problems[0])


CHANGES: dict[str, Change] = {
    "no label": lambda record: {"labels": np.full_like(record.labels, -100)},
    "other labels": lambda record: {"labels": np.full_like(record.labels, 2**31 - 1)},
    "positions far away": lambda record: {"vision_positions": np.full_like(record.vision_positions, 2**31 - 1)},
    "negative positions": lambda record: {"supervised_positions": np.full_like(record.supervised_positions, -(2**31))},
    "only images": lambda record: {"input_ids": np.full_like(record.input_ids, -200)},
    "a turn without text": lambda record: {"conversations": [{"from": 5}]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_fields_that_do_not_fit_are_not_shown(name: str, hostile: Any) -> None:
    reader = hostile(CHANGES[name])
    views = RecordViews(reader)
    place = int(np.flatnonzero(reader.has_image)[0])
    for ask in (views.record_page, views.attention, views.view_png, views.known_tokens):
        with pytest.raises(CorruptStoreError, match=f"record {place} .*; restore the shard"):
            ask(place)
    assert views.record_page((place + 1) % len(reader)).key


def test_a_picture_of_a_record_whose_id_no_font_has(hostile: Any) -> None:
    reader = hostile(lambda record: {"id": "\ud800\x00\x1b[31m\n$\\frac{" + "x" * 100_000})
    views = RecordViews(reader)
    place = int(np.flatnonzero(reader.has_image)[0])
    assert views.view_png(place).startswith(b"\x89PNG")
    assert drawable("\udfff\x07$a\u0627") == "\ufffd\ufffd$a\u0627" and len(drawable("x" * 1000)) == 101


def test_a_number_that_is_no_position_is_a_piece(hostile: Any) -> None:
    """Digits of other scripts, and positions that are not text queries."""
    reader = hostile(nothing)
    record = reader[int(np.flatnonzero(reader.has_image)[0])]
    first, *others = record.tqv_query_positions.tolist()
    chosen = int(record.input_ids[input_number(record, first)])
    for piece in ("\u00b2", "\u0663", "9" * 5000):
        assert query_named(record, lambda token, piece=piece: piece if token == chosen else "a", piece)[0] == 0
    assert query_named(record, lambda token: str(others[0]), str(others[0]))[0] == 1
    with pytest.raises(InputError, match="not a text query"):
        query_named(record, lambda token: "0", "@0")
    store, place = str(reader.path), str(record.index)
    for head in ("\u00b2", "9" * 5000):
        done = CliRunner().invoke(
            show, [store, "--index", place, "--png", str(reader.path.parent / "x.png"), "--head", head]
        )
        assert done.exit_code == 2 and "expected a number or mean" in done.output


def test_a_query_of_the_picture_is_a_position(hostile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a piece that consists of the same digits."""
    reader = hostile(nothing)
    views = RecordViews(reader)
    place = int(np.flatnonzero(reader.has_image)[0])
    absent = int(reader[place].vision_positions[0])
    monkeypatch.setattr(views, "pieces", lambda token: str(absent))
    for ask in (views.attention, views.view_png):
        with pytest.raises(InputError, match="not a text query"):
            ask(place, query=absent)


def test_distances_of_draws_are_called_estimates(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    def views(name: str, logits: LogitsCodec) -> RecordViews:
        codecs = Codecs(attention="float16", vision_top="none", vision_all="none", logits=logits)
        manifest = make_manifest(codecs=codecs, num_samples=2, shard_size=2)

        def record_of(index: int) -> Record:
            record = make_record(manifest, index)
            if logits.tail is None:
                return record
            whole = record.logits
            rows = np.repeat(np.arange(whole.num_positions), np.diff(whole.offsets))
            sums = np.bincount(rows, np.exp(whole.logprobs.astype(np.float64)))
            parts = (whole.logprobs - np.log(sums)[rows]).astype(whole.logprobs.dtype)
            cut = TruncatedLogits(ids=whole.ids, logprobs=parts, offsets=whole.offsets, tail_logmass=None)
            return Record(**record.__dict__ | {"logits": cut})

        return RecordViews(StoreReader(write_store(tmp_path / name, manifest, record_of=record_of)))

    exact = views("exact", LogitsCodec(kind="topk", top_k=3))
    draws = views("draws", LogitsCodec(kind="sampled", num_draws=20))
    cut = views("cut", LogitsCodec(kind="topk", top_k=3, tail="unknown"))
    key = exact.reader.keys[0]
    assert compare(exact, cut, key).notes[-1] == (
        "second: probabilities are of the stored tokens alone, so distances are not lower bounds"
    )
    assert not any("lower bounds" in note for note in compare(exact, exact, key).notes)
    assert not any("draws" in note for note in compare(exact, exact, key).notes)
    notes = compare(exact, draws, key).notes
    assert [note for note in notes if "draws" in note] == [
        "second: probabilities are shares of draws, so distances are estimates, not lower bounds"
    ]


def test_a_file_without_an_end_is_not_read(hostile: Any) -> None:
    """/proc: a regular file of size 0 with content, some of it endless (/proc/self/pagemap)."""
    content = Path("/proc/version")
    if not content.exists():
        pytest.skip("no /proc")
    record = hostile(nothing)[0]
    sha256 = hashlib.sha256(content.read_bytes()).hexdigest()
    named = Record.trusted(record.__dict__ | {"images": ("version",), "image_sha256": (sha256,), "image_bytes": ()})
    with pytest.raises(SampleError, match="the teacher saw"):
        image_file(named, 0, Path("/proc"))
