"""Whole records to rows and back, over every combination of codecs; what is encoded already is never rounded twice."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alignkd.storage import (
    Codecs,
    EncodedArray,
    HiddenStates,
    LogitsCodec,
    Manifest,
    Record,
    RecordError,
    Shapes,
    StoreError,
    TruncatedLogits,
    as_float32,
)
from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.codecs.settings import FROM_ALL
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.schema.columns.shard import GROUPS, RECORD_FIELDS, Column, columns_of, describe_targets
from alignkd.storage.schema.targets.named import NamedTarget

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., Record]
AssertSame = Callable[[Record, Record], None]
IMAGE_GROUPS = ("image", "image_token", "image_bytes")

LOGITS = st.one_of(
    st.builds(lambda d: LogitsCodec(kind="full", dtype=d), st.sampled_from(["float32", "float16"])),
    st.builds(lambda k: LogitsCodec(kind="topk", top_k=k), st.integers(1, 4)),
    st.builds(lambda p: LogitsCodec(kind="nucleus", p=p, min_entries=2, max_entries=20), st.sampled_from([0.5, 0.98])),
    st.builds(lambda d: LogitsCodec(kind="hidden", dtype=d), st.sampled_from(codec_names("hidden"))),
    st.builds(lambda n: LogitsCodec(kind="sampled", num_draws=n), st.sampled_from([1, 50, 300])),
    st.just(LogitsCodec(kind="none")),
)
CODECS = st.builds(
    dict,
    attention=st.sampled_from([*codec_names("attention"), "none"]),
    attention_pairs=st.sampled_from(["tqv", "tqt", "vqv"]),
    vision_top=st.sampled_from([*codec_names("vision_top"), FROM_ALL, "none"]),
    vision_all=st.sampled_from([*codec_names("vision_all"), "none"]),
    logits=LOGITS,
).filter(lambda chosen: chosen["vision_top"] != FROM_ALL or chosen["vision_all"] != "none")
RAGGED = Shapes(num_heads=2, hidden_size=6, vision_tokens=None, vocab_size=40, vision_top_tokens=3)
PASSES = ["sample", "without_image", "replaced_vision", "before_replacement"]
VALUES = st.builds(
    lambda codec, **fields: dict(fields, codec=codec),
    st.sampled_from(codec_names("hidden")),
    kind=st.just("values"),
    rows=st.sampled_from(["tqv_query", "text", "vision", "supervised", "record", "image", "image_token", "own"]),
    layers=st.sampled_from([(), (3,), (0, 2)]),
    heads=st.sampled_from([None, 2]),
    width=st.sampled_from([None, 5]),
    columns=st.sampled_from([None, "vision", "text"]),
    forward_pass=st.sampled_from(PASSES),
)
ATTENTION = st.builds(
    dict,
    kind=st.just("attention"),
    codec=st.sampled_from(codec_names("attention")),
    rows=st.sampled_from(["tqv_query", "text", "vision", "own"]),
    columns=st.sampled_from(["vision", "text"]),
    layers=st.sampled_from([(0,), (0, 8, 16)]),
    heads=st.just(2),
)
SECOND_LOGITS = st.builds(
    dict,
    kind=st.just("logits"),
    codec=LOGITS.filter(lambda codec: codec.kind != "none"),
    rows=st.just("supervised"),
    forward_pass=st.sampled_from(PASSES),
)


def is_possible(fields: dict[str, Any]) -> bool:
    """Whether a manifest may have the target: hypothesis draws from all combinations."""
    try:
        NamedTarget(name="x", **fields).check_further()
    except ValueError:
        return False
    return True


MORE = st.lists(st.one_of(VALUES, ATTENTION, SECOND_LOGITS).filter(is_possible), max_size=3).map(
    lambda drawn: tuple(NamedTarget(name=f"more_{number}", **fields) for number, fields in enumerate(drawn))
)
INPUTS = st.sampled_from(["reference", "embed"])


def through_rows(codec: RecordCodec, records: list[Record]) -> list[Record]:
    """Encode and decode as a shard does: an image's rows stand in the first record that has it."""
    brought: dict[tuple[str, ...], int] = {}
    rows = []
    for number, record in enumerate(records):
        first = brought.setdefault(record.image_sha256, number)
        rows.append(codec.encode(record, with_image=first == number))
    return [_decode(codec, rows, brought, number, record) for number, record in enumerate(records)]


def columns_by_name(codec: RecordCodec) -> dict[str, Column]:
    return {column.name: column for column in codec.columns}


def _decode(
    codec: RecordCodec, rows: list[Any], brought: dict[tuple[str, ...], int], number: int, record: Record
) -> Record:
    columns = columns_by_name(codec)

    def read(name: str) -> NDArray[Any]:
        column = columns[name]
        stored: NDArray[Any] = rows[brought[record.image_sha256] if column.group in IMAGE_GROUPS else number][name]
        assert stored.dtype == column.dtype
        width = stored.shape[-1:] if column.variable_width else column.row_shape[-1:]
        assert stored.shape[1:] == (*column.row_shape[:-1], *width)
        return stored.copy()

    return codec.decode(read, codec.numbers(record))


@settings(max_examples=100)
@given(chosen=CODECS, inputs=INPUTS, text_only=st.sets(st.integers(0, 3)), more=MORE, ragged=st.booleans())
def test_every_record_comes_back_to_the_bit(
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    assert_same: AssertSame,
    chosen: dict[str, Any],
    inputs: str,
    text_only: set[int],
    more: tuple[NamedTarget, ...],
    ragged: bool,
) -> None:
    """Records as a reader gives them: encoded targets pass through untouched."""
    shapes = RAGGED if ragged else make_manifest().shapes
    manifest = make_manifest(codecs=Codecs(**chosen), inputs=inputs, more=more, shapes=shapes)
    records = [make_record(manifest, index, text_only=index in text_only) for index in range(4)]
    for found, expected in zip(through_rows(RecordCodec(manifest), records), records, strict=True):
        assert_same(found, expected)
        found.recheck()


def in_floats(record: Record, rng: np.random.Generator) -> Record:
    """The record as a teacher gives it: new float32 values where it had encoded ones."""
    changes: dict[str, Any] = {}
    if record.attention is not None:
        changes["attention"] = rng.random(record.attention.shape, np.float32)
    if record.vision_embeddings is not None:
        changes["vision_embeddings"] = tuple(rng.random(t.shape, np.float32) for t in record.vision_embeddings)
    if record.vision_top_index is not None:
        shape = record.vision_top_embeddings.shape  # type: ignore[union-attr]
        every = changes.get("vision_embeddings")
        changes["vision_top_embeddings"] = (
            rng.random(shape, np.float32) if every is None else np.concatenate(every)[record.vision_top_index]
        )
    if isinstance(record.logits, HiddenStates):
        changes["logits"] = HiddenStates(states=rng.random(record.logits.states.shape, np.float32))
    return Record(**record.__dict__ | changes)


@settings(max_examples=60)
@given(chosen=CODECS, inputs=INPUTS, index=st.integers(0, 3), ragged=st.booleans())
def test_floats_come_back_as_their_codecs_give_them(
    make_manifest: MakeManifest, make_record: MakeRecord, chosen: dict[str, Any], inputs: str, index: int, ragged: bool
) -> None:
    """Every float field equals its codec's own round trip, whose error is tested in the codec's file."""
    shapes = RAGGED if ragged else make_manifest().shapes
    manifest = make_manifest(codecs=Codecs(**chosen), inputs=inputs, shapes=shapes)
    record = in_floats(make_record(manifest, index), np.random.default_rng(index))
    [found] = through_rows(RecordCodec(manifest), [record])
    found.recheck()
    codecs = manifest.codecs
    assert_rounded(found.attention, record.attention, codecs.attention)
    for image, given_image in zip(found.vision_embeddings or (), record.vision_embeddings or (), strict=True):
        assert_rounded(image, given_image, codecs.vision_all)
    if codecs.vision_top == FROM_ALL and record.has_image:
        every = found.vision_embeddings_float32
        assert every is not None and found.vision_top_embeddings is not None
        rows = every[record.vision_top_index]
        assert (as_float32(found.vision_top_embeddings) == rows).all()  # type: ignore[arg-type]
    else:
        assert_rounded(found.vision_top_embeddings, record.vision_top_embeddings, codecs.vision_top)
    if isinstance(record.logits, HiddenStates) and isinstance(found.logits, HiddenStates):
        assert_rounded(found.logits.states, record.logits.states, codecs.logits.dtype)
    assert found.image_bytes == record.image_bytes


def assert_rounded(found: Any, given: Any, codec: Any) -> None:
    if given is None:
        assert found is None
        return
    expected = get_codec(codec).decode(get_codec(codec).encode(given))
    assert (as_float32(found) == expected).all()
    assert isinstance(found, np.ndarray) == (codec in ("float32", "float16"))


@pytest.fixture
def compact(make_manifest: MakeManifest) -> Manifest:
    codecs = Codecs(
        attention="sqrt_u8", vision_top=FROM_ALL, vision_all="int8_channel", logits=LogitsCodec(kind="none")
    )
    return make_manifest(codecs=codecs, inputs="embed")


def with_codecs(manifest: Manifest, **changes: Any) -> Manifest:
    return manifest.model_copy(update={"codecs": manifest.codecs.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "bfloat16"}, "attention is encoded as sqrt_u8, the store keeps bfloat16; decode it first"),
        ({"attention": "float16"}, "attention is encoded as sqrt_u8, the store keeps float16"),
        ({"vision_all": "bfloat16"}, "vision_embeddings is encoded as int8_channel, the store keeps bfloat16"),
    ],
)
def test_encoded_values_are_never_encoded_by_another_codec(
    compact: Manifest, make_record: MakeRecord, changes: dict[str, Any], message: str
) -> None:
    codec = RecordCodec(with_codecs(compact, **changes))
    with pytest.raises(StoreError, match=message):
        codec.encode(make_record(compact, 0), with_image=True)


def test_from_all_stores_no_embedding_twice(compact: Manifest, make_record: MakeRecord) -> None:
    codec, record = RecordCodec(compact), make_record(compact, 0)
    names = {column.name for column in codec.columns}
    assert {"vision_top_index", "vision_embeddings", "vision_embeddings_scale"} < names
    assert "vision_top_embeddings" not in names
    without = Record(**record.__dict__ | {"vision_top_embeddings": None})
    for variant in (record, without):
        [found] = through_rows(codec, [variant])
        assert found.vision_embeddings is not None
        top, (every,) = found.vision_top_embeddings, found.vision_embeddings
        assert isinstance(top, EncodedArray) and isinstance(every, EncodedArray) and record.vision_top_index is not None
        assert (top.decode() == every.decode()[record.vision_top_index]).all()


def test_from_all_refuses_embeddings_that_reading_would_change(compact: Manifest, make_record: MakeRecord) -> None:
    record = make_record(compact, 0)
    assert isinstance(record.vision_top_embeddings, EncodedArray) and record.vision_top_index is not None
    decoded = record.vision_top_embeddings.decode()
    others = record.vision_top_index[::-1].copy()
    for changes in ({"vision_top_embeddings": decoded}, {"vision_top_index": others}):
        with pytest.raises(StoreError, match="vision_top_embeddings are not the rows vision_top_index of"):
            RecordCodec(compact).encode(Record(**record.__dict__ | changes), with_image=True)


def test_other_codecs_need_the_focused_embeddings(make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    manifest = make_manifest()
    record = Record(**make_record(manifest, 0).__dict__ | {"vision_top_embeddings": None})
    with pytest.raises(
        StoreError, match="vision_top_embeddings is absent, the store's codec for it is float16; give it"
    ):
        RecordCodec(manifest).encode(record, with_image=True)


def test_an_image_that_the_shard_has_adds_no_rows(compact: Manifest, make_record: MakeRecord) -> None:
    codec, record = RecordCodec(compact), make_record(compact, 0)
    groups = {name: column.group for name, column in columns_by_name(codec).items()}
    first, again = (codec.encode(record, with_image=brought) for brought in (True, False))
    assert {groups[name] for name in first.keys() - again.keys()} == set(IMAGE_GROUPS)
    assert not {groups[name] for name in again} & set(IMAGE_GROUPS)
    assert (first["image_bytes"].tobytes(),) == record.image_bytes


@pytest.mark.parametrize(("inputs", "present"), [("reference", True), ("embed", False)])
def test_image_bytes_belong_to_embedded_inputs(
    make_manifest: MakeManifest, make_record: MakeRecord, inputs: str, present: bool
) -> None:
    record = make_record(make_manifest(inputs="embed" if present else "reference"), 0)
    expected = f"image_bytes is {'present' if present else 'absent'}, the store's inputs are {inputs}"
    with pytest.raises(StoreError, match=expected):
        RecordCodec(make_manifest(inputs=inputs)).encode(record, with_image=True)


def test_logits_of_another_kind_are_refused(make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    kinds = {
        "full": LogitsCodec(kind="full"),
        "TruncatedLogits": LogitsCodec(kind="topk", top_k=3),
        "HiddenStates": LogitsCodec(kind="hidden"),
        "SampledLogits": LogitsCodec(kind="sampled", num_draws=5),
        "none": LogitsCodec(kind="none"),
    }
    for found, brought in kinds.items():
        record = make_record(make_manifest(codecs=Codecs(logits=brought)), 0)
        for name, kept in kinds.items():
            codec = RecordCodec(make_manifest(codecs=Codecs(logits=kept)))
            if found == name:
                codec.encode(record, with_image=True)
                continue
            with pytest.raises(StoreError, match=f"the record has {found}, the store keeps {kept.kind}; make them"):
                codec.encode(record, with_image=True)


def test_a_value_that_its_codec_cannot_hold_names_the_field(compact: Manifest, make_record: MakeRecord) -> None:
    record = make_record(compact, 0)
    assert record.attention is not None
    for name, value, message in (
        ("attention", 2.0, "attention: sqrt_u8 holds probabilities, found 0..2;"),
        ("vision_embeddings", 1e7, r"vision_embeddings: int8_channel holds values up to 8.31901e\+06, found 1e\+07"),
    ):
        shape = record.attention.shape if name == "attention" else (5, 6)
        values = np.full(shape, value, np.float32)
        changes: dict[str, Any] = {
            name: values if name == "attention" else (values,),
            "vision_top_embeddings": None,
        }
        with pytest.raises(RecordError, match=message):
            RecordCodec(compact).encode(Record(**record.__dict__ | changes), with_image=True)


def test_the_logits_of_a_trusted_record_are_checked_again(make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    record = make_record(make_manifest(), 0)
    assert isinstance(record.logits, TruncatedLogits)
    wrong = TruncatedLogits.trusted(record.logits.__dict__ | {"tail_logmass": record.logits.tail_logmass + 3})
    with pytest.raises(RecordError, match="hold mass"):
        Record.trusted(record.__dict__ | {"logits": wrong}).recheck()


def test_tables_label_their_columns(make_manifest: MakeManifest) -> None:
    columns = columns_of(make_manifest())
    assert len({column.name for column in columns}) == len(columns)
    labels = [column.labels for column in columns if column.name in ("offsets", "records")]
    assert labels == [GROUPS, RECORD_FIELDS]


def test_each_target_is_described_by_its_main_column(compact: Manifest, make_manifest: MakeManifest) -> None:
    described = describe_targets(compact)
    assert {name: target["codec_id"] for name, target in described.items()} == {
        "attention": "sqrt_u8",
        "vision_embeddings": "int8_channel",
    }
    for codecs in (compact.codecs, make_manifest().codecs):
        manifest = make_manifest(codecs=codecs)
        assert describe_targets(manifest).keys() <= {column.name for column in columns_of(manifest)}
