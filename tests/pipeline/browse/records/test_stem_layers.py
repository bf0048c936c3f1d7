"""Attention that a store takes from the teacher's stem equals the stored one, and what is missing is told in a line."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.pipeline.shards.view.attention.computed import StemLayers, tower_place
from alignkd.storage import StoreReader
from alignkd.vlm.errors import InputError

Alignkd = Callable[..., Any]


def with_image(reader: StoreReader) -> list[int]:
    return [int(position) for position in np.flatnonzero(reader.has_image)]


def test_it_is_what_an_exact_store_holds(stem: StoreReader, exact: StoreReader) -> None:
    """Images and tower are found where the dump found them."""
    computed, stored = RecordViews(stem), RecordViews(exact)
    for position in with_image(stem):
        record = stem[position]
        [other] = exact.find(key=record.key)
        page = computed.record_page(position)
        assert page.no_attention is None and [at.source for at in page.layers] == ["stem", "stem"]
        assert [at.heads for at in page.layers] == [at.heads for at in stored.record_page(other).layers]
        for layer in (0, 1):
            query = int(record.tqv_query_positions[1])
            for options in ({}, {"head": 2}, {"head": 1, "query": query}):
                ours, theirs = (
                    views.attention(at, layer=layer, **options) for views, at in ((computed, position), (stored, other))
                )
                assert (ours.source, theirs.source, ours.layer) == ("stem", "stored", layer)
                for one, two in zip(ours.maps, theirs.maps, strict=True):
                    assert one.shape == two.shape
                    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-7)


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_shards_show_draws_the_same_picture(
    stem: StoreReader, exact: StoreReader, alignkd_here: Alignkd, golden: Path, tmp_path: Path
) -> None:
    key = stem.keys[int(np.flatnonzero(stem.num_images == 1)[0])]
    drawn = []
    for number, (reader, options) in enumerate([
        (exact, ()),
        (stem, ()),
        (stem, ("--checkpoint", golden / "student", "--vision-config", golden / "clip")),
    ]):  # fmt: skip
        png = tmp_path / f"{number}.png"
        picture = ("--png", png, "--layer", 1, "--head", 2, *options)
        done = alignkd_here("shards", "show", reader.path, "--key", key, *picture)
        assert done.returncode == 0, done.stderr
        drawn.append(pixels(png.read_bytes()))
    for other in drawn[1:]:
        difference = np.abs(drawn[0] - other)
        assert difference.max() <= 16 and difference.mean() < 0.05
    assert len(np.unique(drawn[0])) > 50


def test_what_is_missing_is_told_in_one_line(
    stem: StoreReader, alignkd_here: Alignkd, another_tower: Path, golden: Path, tmp_path: Path
) -> None:
    position = with_image(stem)[0]
    show = ("shards", "show", stem.path, "--key", stem[position].key, "--png", tmp_path / "a.png")

    def refused(*options: object) -> str:
        done = alignkd_here(*show, *options)
        assert done.returncode == 1 and done.stderr.startswith("alignkd: ") and done.stderr.count("\n") == 1
        assert not (tmp_path / "a.png").exists()
        return str(done.stderr)

    other = ("--checkpoint", another_tower, "--vision-config", golden / "clip")
    assert "its vision tower has hash" in refused(*other)
    assert "or give the folder of the images by --images" in refused("--images", tmp_path)
    assert "stem" in refused("--layer", 3) or "layers 0, 1" in refused("--layer", 3)
    without = RecordViews(stem, images=tmp_path).record_page(position)
    assert not without.layers and without.no_attention == without.images[0].missing
    foreign = RecordViews(stem, checkpoint=another_tower, vision_config=golden / "clip")
    with pytest.raises(InputError, match="its vision tower has hash"):
        foreign.attention(position)
    assert "its vision tower has hash" in str(foreign.record_page(position).no_attention)
    named = stem.manifest.read_from
    assert named is not None
    for checkpoint, told in ((None, "the store names none"), (str(tmp_path / "gone"), f"{tmp_path}/gone, where the")):
        manifest = stem.manifest.changed(read_from=named.model_copy(update={"checkpoint": checkpoint}))
        with pytest.raises(InputError, match=told) as caught:
            tower_place(manifest, None)
        assert "--checkpoint" in str(caught.value)


def test_a_name_in_a_manifest_is_never_fetched(stem: StoreReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only folders of this machine: a hub id cannot be in it, and what is there is opened as a folder."""
    place = tower_place(stem.manifest, None)
    assert isinstance(place.checkpoint, Path) and os.path.isabs(place.checkpoint)  # noqa: PTH117
    monkeypatch.chdir("/")
    assert StemLayers(stem).why_not() is None


def test_images_are_found_where_the_dump_found_them(
    exact: StoreReader, alignkd_here: Alignkd, golden_images: Path, tmp_path: Path
) -> None:
    position = with_image(exact)[0]
    record = exact[position]
    named = exact.manifest.read_from
    assert named is not None and named.image_folder(record.index) == golden_images.absolute()
    picture = ("shards", "show", exact.path, "--key", record.key, "--png", tmp_path / "a.png")
    assert RecordViews(exact).record_page(position).images[0].missing is None
    # a folder that is given is used, whatever the manifest names
    moved = tmp_path / "moved"
    shutil.copytree(golden_images, moved)
    assert alignkd_here(*picture, "--images", moved).returncode == 0
    assert alignkd_here(*picture, "--images", tmp_path / "none").returncode == 1


def test_a_stranger_cannot_show_a_file_of_this_machine(
    exact: StoreReader, golden_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest names a folder, a record a file in it: nothing but the image with the record's sha256 is shown."""
    position = with_image(exact)[0]
    record = exact[position]
    secret = tmp_path / record.images[0]
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_bytes(next(file for file in golden_images.iterdir() if file.name != secret.name).read_bytes())
    named = exact.manifest.read_from
    assert named is not None
    folder = named.images[0].model_copy(update={"folder": str(tmp_path)})
    hostile = exact.manifest.changed(read_from=named.model_copy(update={"images": (folder,)}))
    reader = StoreReader(exact.path)
    monkeypatch.setattr(reader, "manifest", hostile)
    views = RecordViews(reader)
    assert "the teacher saw" in str(views.record_page(position).images[0].missing)
    with pytest.raises(InputError, match="the teacher saw"):
        views.image_png(position, 0)
    secret.unlink()
    os.mkfifo(secret)
    assert "not a regular file" in str(views.record_page(position).images[0].missing)
