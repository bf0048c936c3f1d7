"""Every question to an index, against a plain scan of the records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scanned_store import Row, counted, groups, ordered, passes, plain_figures, scan

from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.store_index import StoreIndex, open_index
from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.sources import StoredSource
from alignkd.storage.schema.targets.counterfactual import counterfactual_targets
from alignkd.storage.schema.targets.sequence import SEQUENCE_TARGET

WORDS = ["cat", "Cats", "red", "café", "Ёлка", "猫が好き", "traffic light", "a_b", "<image>", "x" * 12, "\udc80"]
REASONS = ["'a.jpg' is missing", "'b.png' is missing", "image has 3 bytes", "no answer"]
NUMBERS = ["position", "index", "shard", "tokens", "vision", "images", "supervised", "copies", "same_answer",
           "repetition", "unusable", "perplexity", "visual_advantage", "entropy", "worst_label", "tail_mass",
           "attention_mass"]  # fmt: skip
TEXTS = ["id", "key", "source", "reason"]
World = tuple[StoreIndex, list[Row]]


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_manifest: Any,
    make_record: Any,
    write_store: Any,
) -> Iterator[World]:
    """40 samples of two data sets, some unusable, some with the same answers or keys."""
    sources = (StoredSource(name="one", num_samples=25), StoredSource(name="two", num_samples=15))
    manifest = make_manifest(
        backend=request.param,
        num_samples=40,
        shard_size=6,
        sources=sources,
        more=(SEQUENCE_TARGET, *counterfactual_targets("image", entries=4, mass=0.5)),
    )

    def record_of(index: int) -> Any:
        rng = np.random.default_rng(index)
        said = [" ".join(rng.choice(WORDS, int(rng.integers(0, 5)))) for _ in range(2)]
        turns = [{"from": "human", "value": said[0]}, {"from": "gpt", "value": said[1]}]
        key = make_record(manifest, index % 10 if index % 5 == 0 else index).key
        return make_record(manifest, index, conversations=turns, id=f"{rng.choice(WORDS)}/{index}", key=key)

    quarantine = {4: 0, 9: 1, 17: 2, 18: 2, 31: 3, 39: 0}
    store = _written(tmp_path_factory.mktemp("store"), manifest, record_of, quarantine)
    reader = StoreReader(store)
    with open_index(reader) as index:
        assert index.wait(60) and index.state().problems == ()
        yield index, scan(reader, plain_figures)


def _written(path: Path, manifest: Any, record_of: Any, quarantine: dict[int, int]) -> Path:
    from alignkd.storage import open_writer

    writer = open_writer(path, manifest)
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                if index in quarantine:
                    sink.quarantine(index, f"sample-{index}", REASONS[quarantine[index]])
                else:
                    sink.append(record_of(index))
            sink.commit()
    return path


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    number = st.one_of(st.none(), st.floats(-1, 3), st.integers(0, 40).map(float))
    queries = ["cat", "ca*", "ca", '"cat"', "CAFE", "ёл*", "елка", "好き", "が好", '"traffic light"', "light traffic",
               "a b", "image", "xxxx*", "...", " ", '"red cat" caf*', "猫*", '"ca*"']  # fmt: skip
    return Filter(
        text=draw(st.one_of(st.just(""), st.sampled_from(queries))),
        sources=draw(st.sampled_from([(), (), ("one",), ("two",), ("one", "two"), ("three",)])),
        unusable=draw(st.sampled_from([None, None, True, False])),
        reasons=draw(st.sampled_from([(), (), (), ("... is missing",), ("no answer", "image has N bytes")])),
        id=draw(st.sampled_from(["", "", "", "C", "1", "/2", "sample", "é", "zz"])),
        ranges=draw(st.dictionaries(st.sampled_from(NUMBERS), st.tuples(number, number), max_size=2)),
    )


def test_every_column_of_every_row_is_that_of_the_scan(world: World) -> None:
    index, rows = world
    found = index.page(limit=1000).rows
    assert len(found) == len(rows) == 40
    for row, expected in zip(found, rows, strict=True):
        for name in (*NUMBERS, *TEXTS):
            if isinstance(expected[name], float):
                assert row[name] == pytest.approx(expected[name], rel=1e-5), name
            else:
                assert row[name] == expected[name], name


@settings(max_examples=50)
@given(filters(), st.sampled_from([*NUMBERS, *TEXTS]), st.booleans(), st.integers(0, 45), st.integers(0, 12))
def test_a_page_is_a_part_of_the_sorted_scan(
    world: World, wanted: Filter, sort: str, descending: bool, offset: int, limit: int
) -> None:
    index, rows = world
    expected = ordered([row for row in _as_stored(world) if passes(row, wanted)], sort, descending=descending)
    page = index.page(wanted, sort=sort, descending=descending, offset=offset, limit=limit)
    assert (page.matching, page.indexed, page.total) == (len(expected), len(rows), len(rows))
    assert [row["index"] for row in page.rows] == [row["index"] for row in expected[offset : offset + limit]]
    positions = [row["position"] for row in expected if row["position"] is not None]
    assert index.positions(wanted).tolist() == sorted(positions)


CHOSEN = (
    Filter(),
    Filter(unusable=False, ranges={"tokens": (12.0, None)}),
    Filter(text="cat"),
    Filter(id="c", sources=("one",)),
    Filter(ranges={"attention_mass": (2.4, None), "index": (None, 30.0)}),
)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("number", range(len(CHOSEN)))
def test_the_order_by_every_column(world: World, number: int, descending: bool) -> None:
    index, rows, wanted = world[0], _as_stored(world), CHOSEN[number]
    assert sum(passes(row, wanted) for row in rows) > 3
    for sort in (*NUMBERS, *TEXTS):
        expected = ordered([row for row in rows if passes(row, wanted)], sort, descending=descending)
        found = index.page(wanted, sort=sort, descending=descending, limit=100).rows
        assert [row["index"] for row in found] == [row["index"] for row in expected], sort


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("number", range(len(CHOSEN)))
def test_neighbours_by_every_column(world: World, number: int, descending: bool) -> None:
    """Of records that pass the filter, and of those that do not; unusable samples are passed over."""
    index, rows, wanted = world[0], _as_stored(world), CHOSEN[number]
    for sort in (*NUMBERS, *TEXTS):
        every = [row for row in ordered(rows, sort, descending=descending) if not row["unusable"]]
        passing = [row["position"] for row in every if passes(row, wanted)]
        before = 0
        for position in (row["position"] for row in every):
            after = before + (before < len(passing) and passing[before] == position)
            previous = passing[before - 1] if before else None
            following = passing[after] if after < len(passing) else None
            found = index.neighbours(wanted, sort=sort, descending=descending, position=position)
            assert found == (previous, following), (sort, position)
            before = after


@settings(max_examples=25)
@given(filters(), st.sampled_from(NUMBERS), st.integers(1, 30))
def test_a_histogram_counts_what_the_scan_counts(world: World, wanted: Filter, column: str, bins: int) -> None:
    index, _ = world
    rows = _as_stored(world)
    found = index.histogram(wanted, column, bins)
    assert len(found.edges) == len(found.counts) + 1 <= bins + 1
    assert list(found.counts) == counted(rows, column, found.edges)
    matching = [row for row in rows if passes(row, wanted.without(column))]
    assert list(found.matching) == counted(matching, column, found.edges)
    assert found.without == sum(row[column] is None for row in rows)
    assert found.edges[0] <= min(row[column] for row in rows if row[column] is not None)


@settings(max_examples=25)
@given(filters(), st.sampled_from(NUMBERS), st.integers(1, 12), st.data())
def test_the_range_of_some_bins_keeps_the_samples_of_these_bins(
    world: World, wanted: Filter, column: str, bins: int, data: st.DataObject
) -> None:
    """Whole numbers: from the left edge to the one before the right edge."""
    index, _ = world
    found = index.histogram(wanted, column, bins)
    first = data.draw(st.integers(0, len(found.counts) - 1))
    last = data.draw(st.integers(first, len(found.counts) - 1))
    whole = {one.name: one.kind for one in index.columns()}[column] == "integer"
    high = found.edges[last + 1] - 1 if whole else np.nextafter(found.edges[last + 1], -np.inf)
    high = found.edges[-1] if last == len(found.counts) - 1 else float(high)
    brushed = Filter(**{**vars(wanted), "ranges": {**wanted.ranges, column: (found.edges[first], high)}})
    assert index.page(brushed).matching == sum(found.matching[first : last + 1])


@settings(max_examples=25)
@given(filters())
def test_groups_are_those_of_the_scan(world: World, wanted: Filter) -> None:
    index, _ = world
    rows = _as_stored(world)
    sources = {group.name: (group.count, group.matching) for group in index.sources(wanted)}
    reasons = {group.name: (group.count, group.matching) for group in index.reasons(wanted)}
    assert sources == groups(rows, wanted, "source")
    assert reasons == groups(rows, wanted, "reason")


def test_columns_have_the_range_of_their_values_and_say_what_is_missing(world: World) -> None:
    index, _ = world
    rows = _as_stored(world)
    for column in index.columns():
        if column.kind == "text":
            assert (column.minimum, column.maximum) == (None, None)
        elif column.name in NUMBERS:
            values = [row[column.name] for row in rows if row[column.name] is not None]
            assert (column.minimum, column.maximum) == (min(values), max(values))
    assert all(column.note or column.kind == "text" or column.name in ("shard", "images") for column in index.columns())


def test_an_unknown_column_is_refused_in_one_line(world: World) -> None:
    index, _ = world
    with pytest.raises(StoreError, match="column 'tokns' does not exist; choose one of position, "):
        index.page(sort="tokns")
    with pytest.raises(StoreError, match="column source holds texts, which have no range; choose one of position, "):
        index.histogram(Filter(), "source")
    with pytest.raises(StoreError, match="column 'x' does not exist"):
        index.page(Filter(ranges={"x": (1, 2)}))
    assert index.page(offset=-5, limit=-1).rows == ()


def _as_stored(world: World) -> list[Row]:
    """The rows of the scan with the figures of the index, which differ from them by rounding."""
    index, rows = world
    found = index.page(limit=1000).rows
    figures = [column.name for column in index.columns() if column.figure or column.name == "repetition"]
    return [row | {name: own[name] for name in figures} for row, own in zip(rows, found, strict=True)]
