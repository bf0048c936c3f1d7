"""A store of a stranger, all of whose texts try to become HTML or script, is shown as text."""

import json
import re
import time
from typing import Any

import pytest
from browsed_store import Texts, made_store
from playwright.sync_api import Page, expect

from alignkd.storage import StoreReader
from alignkd.teacher_dump.operation.status import FolderPlace, WorkerStatus

pytestmark = pytest.mark.browser
SCRIPT = "<script>window.ran = 1</script>"
IMAGE = "<img src=x onerror=\"window.ran = 1\">'\"><svg onload='window.ran=1'>"
LINK = "javascript:window.ran=1"
TEMPLATE = "{{ 7 * 7 }}{% raw %}&lt;&amp;"
EVIL = Texts(
    id=f"{SCRIPT} {{index}}",
    question=f"{IMAGE} {TEMPLATE} number {{index}}",
    answer=f"{LINK} \u202e{SCRIPT}",
    reason=f"{IMAGE}{SCRIPT} {TEMPLATE}",
    sources=(f"</option></select>{SCRIPT}", f"\"'{IMAGE}"),
    image=f"{LINK}/{{index}}\"'><img src=x onerror=window.ran=1>.png",
    piece=f"{IMAGE}{SCRIPT}{{number}}",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> Any:
    folder = tmp_path_factory.mktemp("stranger")
    # one shard is missing, so that the page of the dump shows a worker
    store = made_store(folder / f"{SCRIPT.replace('/', '')}&amp;", samples=40, texts=EVIL, shards=[0])
    other = made_store(folder / "other", samples=40, texts=EVIL, seed=1, shards=[0])
    place = FolderPlace(store / ".status", "worker")
    place.write(
        WorkerStatus(worker=SCRIPT, host=IMAGE, state="failed", message=f"{IMAGE}{SCRIPT}", heartbeat=time.time())
    )
    return serve(store, other)


@pytest.fixture
def look(served: Any, open_page: Any) -> Any:
    """look(path): a page; at the end nothing has run, and every element is one of the page's own."""
    pages: list[Page] = []

    def opened(path: str) -> Page:
        page: Page = open_page(served.at(path))
        page.on("dialog", lambda dialog: pytest.fail(f"a dialog opened: {dialog.message}"))
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.wait_for_timeout(100)
        assert page.evaluate("window.ran") is None
        scripts = page.locator("script").evaluate_all("nodes => nodes.map(node => node.getAttribute('src'))")
        assert len(scripts) == 1 and scripts[0].startswith("/static/")
        attributes = page.locator("body *").evaluate_all(
            "nodes => nodes.flatMap(node => node.getAttributeNames()).filter(name => name.startsWith('on'))"
        )
        links = page.locator("a[href]").evaluate_all("nodes => nodes.map(node => node.protocol)")
        assert attributes == [] and set(links) <= {"http:"}
        images = page.locator("img").evaluate_all("nodes => nodes.map(node => node.getAttribute('src'))")
        assert all(source.startswith("/api/image/") for source in images)
        assert (
            page.locator("script").count() + page.locator("iframe, object, embed, base, meta[http-equiv]").count() == 1
        )


def filled(text: str, index: int) -> str:
    return text.replace("{index}", str(index))


def test_the_list(look: Any, served: Any) -> None:
    page = look("/")
    expect(page.locator("#matching")).to_have_text("20 samples")
    reader: StoreReader = served.browser.stores[0].reader
    index = int(reader.dataset_index.min())
    assert page.locator("#rows tbody .id").first.inner_text() == filled(EVIL.id, index)
    shown = page.locator("#rows tbody .source").all_inner_texts()
    assert set(shown) == set(EVIL.sources)
    options = page.locator("#source option").all_inner_texts()
    assert [re.sub(r" \(\d+\)$", "", option) for option in options[1:]] == list(EVIL.sources)
    page.locator("#show").get_by_text("Quarantined").click()
    expect(page.locator("#reasons li")).to_have_count(1)
    reasons = page.locator("#rows tbody .reason").all_inner_texts()
    assert reasons and set(reasons) == {EVIL.reason}
    assert page.locator("#reasons li").inner_text().split("\n", 1)[1].startswith("<img src=x onerror")
    page.locator("#search").fill(IMAGE)
    page.locator("#source").select_option(index=1)  # at once: what was typed is not lost
    expect(page.locator("#matching")).to_have_text("0 samples")
    page.reload()
    expect(page.locator("#search")).to_have_value(IMAGE)
    expect(page.locator("#source")).to_have_value(EVIL.sources[0])


def test_a_record(look: Any, served: Any) -> None:
    reader: StoreReader = served.browser.stores[0].reader
    position = next(at for at in range(len(reader)) if reader.num_images[at])
    index = int(reader.dataset_index[position])
    page = look(f"/record/{position}")
    expect(page.locator("#heads button")).to_have_count(3)
    assert page.locator("h1 bdi").inner_text() == filled(EVIL.id, index)
    label = int(reader[position].labels[-1])
    assert page.locator(".token.supervised").last.inner_text() == EVIL.piece.replace("{number}", str(label))
    page.locator(".token.supervised").last.hover()
    expect(page.locator(".tip")).to_contain_text("<script>window.ran")
    page.locator(".token.query").first.click()
    expect(page.locator("#chosen")).to_contain_text("<script>window.ran")
    page.locator("#details summary").click()
    details = page.locator("#details dd").all_inner_texts()
    assert {filled(EVIL.question, index), filled(EVIL.answer, index), filled(EVIL.image, index)} <= set(details)
    assert page.locator("#images figcaption bdi").inner_text() == filled(EVIL.image, index)
    assert page.locator("#images img").get_attribute("alt") == filled(EVIL.image, index)
    assert page.title().startswith(SCRIPT)


def test_the_dump(look: Any) -> None:
    page = look("/dump")
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    worker = page.locator("#workers tbody td").all_inner_texts()
    assert worker[0] == SCRIPT and worker[2] == IMAGE and worker[-1] == f"{IMAGE}{SCRIPT}"
    errors = page.locator("#errors tbody td.reason").all_inner_texts()
    assert errors and set(errors) == {EVIL.reason}


def test_a_comparison(look: Any, served: Any) -> None:
    reader: StoreReader = served.browser.stores[0].reader
    position = next(at for at in range(len(reader)) if reader.num_images[at])
    page = look(f"/compare/{reader.keys[position]}")
    expect(page.locator("#differences tbody tr").first).to_contain_text("<script>window.ran")
    assert page.locator("h1").inner_text().startswith(SCRIPT)
    page.locator(".token.supervised").first.hover()
    expect(page.locator(".tip table")).to_have_count(2)


def test_errors_name_a_strangers_texts_as_text(look: Any, open_page: Any, served: Any) -> None:
    page: Page = open_page(served.at(f"/?sort={SCRIPT}"), fails=True)
    expect(page.locator("#problem")).to_contain_text("<script>")
    assert page.evaluate("window.ran") is None
    answer = page.request.get(served.url + f"/api/page?sort={SCRIPT}")
    assert answer.status == 422 and "script" in json.loads(answer.text())["error"]
    assert answer.headers["content-type"] == "application/json"
