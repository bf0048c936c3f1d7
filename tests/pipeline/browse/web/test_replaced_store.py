"""A store that is done again, replaced or deleted while its pages are open."""

import shutil
from pathlib import Path

import pytest
from browsed_store import Texts, is_unusable, made_record, made_store

from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.web import opened
from alignkd.pipeline.browse.web.opened import Browser, OpenedStore
from alignkd.storage import StoreReader, open_writer
from alignkd.storage.errors import StoreError


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "SECONDS_BETWEEN_LOOKS", 0.0)


def assert_shown_as_it_is(store: OpenedStore, folder: Path) -> None:
    """Records, attention and search are those of a reader that opens the folder now."""
    store.look_for_more()
    reader = StoreReader(folder, allow_incomplete=True)
    assert store.index.wait(60) and store.index.state().problems == ()
    assert len(store.reader) == len(reader) == store.index.page().indexed - len(reader.quarantined)
    for position in range(0, len(reader), 7):
        page = store.views.record_page(position)
        assert page.key == reader[position].key
        expected = [token for token in OpenedStore(folder).views.record_page(position).tokens if token.supervised]
        assert [token for token in page.tokens if token.supervised] == expected
    assert len(store.index.positions(Filter(text="colour"))) == len(reader)


def test_a_store_of_as_many_shards_takes_its_place(tmp_path: Path) -> None:
    folder = made_store(tmp_path / "store", samples=40)
    with Browser.open([folder]) as browser:
        store = browser.stores[0]
        assert_shown_as_it_is(store, folder)
        before, views = store.views.record_page(0), store.views
        store.look_for_more()
        assert store.views is views
        shutil.rmtree(folder)
        for _ in range(2):
            with pytest.raises(StoreError, match="No such file"):
                store.look_for_more()
        made_store(folder, samples=40, seed=1, top_k=3)
        assert_shown_as_it_is(store, folder)
        assert store.views.record_page(0).tokens != before.tokens


def test_a_shard_that_is_done_again(tmp_path: Path) -> None:
    folder = made_store(tmp_path / "store", samples=40)
    with Browser.open([folder]) as browser:
        store = browser.stores[0]
        assert_shown_as_it_is(store, folder)
        manifest = store.reader.manifest
        attached = {name: store.reader.attachment(name).read_bytes() for name in manifest.attachments}
        writer, before = open_writer(folder, manifest, attached), store.reader.starts[1]
        writer.redo([1])
        with writer.open_shard(1) as sink:
            for index in writer.planned_samples(1).tolist():
                if is_unusable(index):
                    sink.quarantine(index, str(index), "image is damaged")
                else:
                    sink.append(made_record(index, texts=Texts(), seed=1, embed=True, top_k=4))
            sink.commit()
        earlier = store.views.record_page(before).tokens
        assert_shown_as_it_is(store, folder)
        assert store.views.record_page(before).tokens != earlier
