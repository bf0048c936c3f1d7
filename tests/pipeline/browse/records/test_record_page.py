"""What the page of a record shows equals what the store holds, read in other ways."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.pipeline.shards.view.attention.attention_map import input_number
from alignkd.storage import Record, StoreReader, as_float32
from alignkd.storage.record.record import heads_first
from alignkd.vlm.errors import InputError, SampleError


def first_with_image(reader: StoreReader) -> int:
    return int(np.flatnonzero(reader.has_image)[0])


@pytest.mark.parametrize("name", ["exact", "compact"])
def test_probabilities_are_those_of_the_store(name: str, request: pytest.FixtureRequest) -> None:
    reader: StoreReader = request.getfixturevalue(name)
    views = RecordViews(reader)
    for position in range(len(reader)):
        record, page = reader[position], views.record_page(position)
        logprobs = reader.logprobs(position)
        labels = record.labels[1:][record.labels[1:] != -100]
        predictions = [token.prediction for token in page.tokens if token.supervised]
        assert page.no_predictions is None and len(predictions) == len(labels) > 0
        dense = np.exp(logprobs.dense().astype(np.float64))
        places = np.arange(len(labels))
        given = [found for found in predictions if found is not None]
        assert [found.position for found in given] == record.supervised_positions.tolist()
        assert [found.label for found in given] == labels.tolist()
        for place, found in enumerate(given):
            probs = np.array([entry.probability for entry in found.top])
            np.testing.assert_allclose(probs, dense[place, [entry.id for entry in found.top]], rtol=1e-4)
            assert (np.diff(probs) <= 0).all()
        tails = np.array([found.tail_mass for found in given], float)
        if name == "compact":
            np.testing.assert_allclose(tails, np.exp(logprobs.tail_logmass), rtol=1e-5)  # type: ignore[union-attr,arg-type]
        else:
            own = dense[places, labels]
            assert not tails.any()
            assert [found.label_rank for found in given] == (1 + (dense > own[:, None]).sum(1)).tolist()
            np.testing.assert_allclose([found.label_probability or 0 for found in given], own, rtol=1e-4)
        json.loads(json.dumps(page.as_json(), allow_nan=False))


def test_tokens_have_the_positions_of_the_record(exact: StoreReader) -> None:
    views = RecordViews(exact)
    for position, record in enumerate(exact):
        page = views.record_page(position)
        text = [token for token in page.tokens if token.role != "image"]
        assert [input_number(record, token.position) for token in text] == [token.number for token in text]
        assert [token.position for token in text if token.is_query] == record.tqv_query_positions.tolist()
        vision = [at for token in page.tokens if token.role == "image" for at in range(token.count)]
        assert len(vision) == len(record.vision_positions) and sum(t.count for t in page.tokens) == len(vision) + len(
            text
        )
        assert page.turns == tuple(record.conversations) and page.sequence_length == record.sequence_length
        assert (page.no_attention is None) == record.has_image


def test_attention_is_that_of_the_record(exact: StoreReader, golden_images: Path) -> None:
    position = first_with_image(exact)
    record, views = exact[position], RecordViews(exact, images=golden_images)
    values = np.asarray(record.more["attention_layers_tqv"])  # [R, layers * heads, C]
    heads = exact.manifest.shapes.num_heads
    assert [(at.layer, at.heads, at.source) for at in views.record_page(position).layers] == [
        (layer, heads, "stored") for layer in (0, 1)
    ]
    for layer in (0, 1):
        of_layer = values[:, layer * heads : (layer + 1) * heads]
        mean = views.attention(position, layer=layer)
        assert len(mean.maps) == record.num_images and mean.source == "stored"
        shown = np.concatenate([one.ravel() for one in mean.maps])
        np.testing.assert_allclose(shown, of_layer.mean((0, 1)), rtol=1e-5)
        assert list(mean.top) == np.argsort(-shown, kind="stable")[:16].tolist()
        query = int(record.tqv_query_positions[2])
        one = views.attention(position, layer=layer, head=3, query=query)
        np.testing.assert_array_equal(np.concatenate([m.ravel() for m in one.maps]), of_layer[2, 3])
    for wrong in ({"layer": 2}, {"head": heads}, {"query": 0}):
        with pytest.raises(InputError):
            views.attention(position, **wrong)


def test_the_outlined_tokens_of_the_mean_are_those_of_the_focus_loss(compact: StoreReader) -> None:
    views = RecordViews(compact)
    for position, record in enumerate(compact):
        if record.has_image:
            found = views.attention(position)
            assert record.vision_top_index is not None and record.attention is not None
            scores = heads_first(as_float32(record.attention)).mean(0).sum(0)
            least = np.sort(scores)[-16]
            stored = set(record.vision_top_index.tolist())
            # 8 bits make some values equal to the last one
            assert {token for token in stored if scores[token] > least * 1.01} <= set(found.top)


def test_images_are_shown_only_if_they_are_those_of_the_teacher(
    exact: StoreReader, golden_images: Path, tmp_path: Path
) -> None:
    position = first_with_image(exact)
    record: Record = exact[position]
    without, views = RecordViews(exact, images=tmp_path), RecordViews(exact, images=golden_images)
    page = without.record_page(position)
    assert "--images" in str(page.images[0].missing) and page.images[0].map_extent is None
    image = views.record_page(position).images[0]
    assert image.missing is None and image.width and image.map_extent and image.rows * image.columns == image.tokens
    assert views.image_png(position, 0).startswith(b"\x89PNG")
    assert views.view_png(position, head=1).startswith(b"\x89PNG") and without.view_png(position).startswith(b"\x89PNG")
    (tmp_path / record.images[0]).parent.mkdir(parents=True, exist_ok=True)
    other = next(file for file in golden_images.iterdir() if file.name != Path(record.images[0]).name)
    (tmp_path / record.images[0]).write_bytes(other.read_bytes())
    foreign = RecordViews(exact, images=tmp_path)
    assert "the teacher saw" in str(foreign.record_page(position).images[0].missing)
    with pytest.raises(SampleError, match="the teacher saw"):
        foreign.image_png(position, 0)
    with pytest.raises(IndexError):
        views.image_png(position, 9)
