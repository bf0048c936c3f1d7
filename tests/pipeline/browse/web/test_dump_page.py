"""The page of a running dump in a real browser: it follows workers, shards and unusable samples as they come."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsed_store import is_unusable, made_store
from playwright.sync_api import Page, expect

from alignkd.pipeline.browse.web import opened
from alignkd.storage import StoreReader
from alignkd.teacher_dump.operation.status import FolderPlace, WorkerStatus

pytestmark = pytest.mark.browser


def unusable_of(store: Path, *, shards: int) -> list[str]:
    """Indices of the unusable samples of the first shards, as the reader of the store lists them."""
    reader = StoreReader(store, allow_incomplete=True)
    assert len(reader.commits) == shards
    return sorted(str(entry.index) for entry in reader.quarantined)


def test_progress_workers_and_errors_as_they_come(
    tmp_path: Path, serve: Any, open_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "SECONDS_BETWEEN_LOOKS", 0.0)
    store = made_store(tmp_path / "store", samples=60, shards=[0])
    place = FolderPlace(store / ".status", "worker")  # alive as long as this process holds its lock
    status = WorkerStatus(worker="0/1", shards=(1,), samples=25, in_hand=5, total=60, errors=2, rate=12.5, tokens=777)
    place.write(status)
    served = serve(store)
    page: Page = open_page(served.at("/dump"))
    cells = page.locator("#workers tbody td")
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    assert [cells.nth(at).inner_text() for at in (0, 1, 3, 4, 6, 7)] == [
        "0/1",
        "running",
        str(status.pid),
        "1",
        "25",
        "12.5",
    ]
    totals = page.locator("#totals")
    expect(totals).to_contain_text("25 of 60")
    expect(totals).to_contain_text("1 of 3")
    assert float(page.locator("#done").get_attribute("value") or 0) == pytest.approx(25 / 60)
    found = page.locator("#errors tbody td:nth-child(2)")
    wanted = unusable_of(store, shards=1)
    expect(found).to_have_count(len(wanted))
    assert sorted(found.all_inner_texts()) == wanted

    listed: Page = open_page(served.at("/"))
    expect(listed.locator("#matching")).to_have_text("20 samples")

    made_store(store, samples=60, shards=[1])
    place.write(replace(status, shards=(2,), samples=45, in_hand=5, rate=14.0, heartbeat=time.time()))
    expect(totals).to_contain_text("45 of 60")
    expect(totals).to_contain_text("2 of 3")
    wanted = unusable_of(store, shards=2)
    expect(found).to_have_count(len(wanted))
    assert sorted(found.all_inner_texts()) == wanted
    expect(listed.locator("#matching")).to_have_text("40 samples")  # the list grows too

    place.write(replace(status, state="failed", message="the disk is full", heartbeat=time.time()))
    expect(cells.nth(1)).to_have_text("failed")
    expect(cells.last).to_have_text("the disk is full")
    expect(page.locator("h1 .state")).to_have_text("stopped")

    made_store(store, samples=60)
    place.close(complete=True)
    expect(page.locator("h1 .state")).to_have_text("complete")
    expect(page.locator("#workers")).to_contain_text("The dump is complete.")
    assert page.locator("#errors tbody tr").count() == sum(map(is_unusable, range(60)))
    expect(listed.locator("#matching")).to_have_text("60 samples")


def test_the_browser_changes_nothing_of_the_store(tmp_path: Path, serve: Any, open_page: Any) -> None:
    """Every file but the index, and no lock: a dump goes on as if nobody looked."""
    store = made_store(tmp_path / "store", samples=60, shards=[0])

    def files() -> dict[str, bytes]:
        found = (path for path in store.rglob("*") if path.is_file() and ".browse" not in path.parts)
        return {str(path.relative_to(store)): path.read_bytes() for path in found}

    before = files()
    served = serve(store)
    for path in ("/", "/record/0", "/dump"):
        page: Page = open_page(served.at(path))
        expect(page.locator("main")).to_contain_text("0")
    assert files() == before
    made_store(store, samples=60)
    assert len(StoreReader(store)) == 60 - sum(map(is_unusable, range(60)))
