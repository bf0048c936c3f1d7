"""The list in a real browser: what is drawn equals what the store holds, read by `StoreReader` alone."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsed_store import made_store
from playwright.sync_api import Page, expect

from alignkd.storage import StoreReader

pytestmark = pytest.mark.browser
ROWS = "#rows tbody tr"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_store(tmp_path_factory.mktemp("list") / "store")


@pytest.fixture(scope="module")
def reader(store: Path) -> StoreReader:
    return StoreReader(store)


@pytest.fixture(scope="module")
def served(store: Path, serve: Any) -> Any:
    return serve(store)


@pytest.fixture
def listed(served: Any, open_page: Any) -> Page:
    """The list without filters."""
    page: Page = open_page(served.at("/"))
    expect(page.locator("#matching")).to_have_text("130 samples")
    expect(page.locator(".histogram").first).to_be_attached()
    expect(page.locator(".histogram:not(:has(rect.all))")).to_have_count(0)
    return page


def column(page: Page, label: str) -> list[str]:
    """The texts of a column, row by row."""
    heads = [re.sub(" [↑↓]$", "", text) for text in page.locator("#rows thead th").all_inner_texts()]
    cells = f"rows => rows.map(row => row.cells[{heads.index(label)}].innerText)"
    found: list[str] = page.locator(ROWS).evaluate_all(cells)
    return found


def matching(page: Page, number: int) -> None:
    """Wait until so many samples match."""
    expect(page.locator("#matching")).to_have_text(f"{number} sample{'' if number == 1 else 's'}")


def test_rows_show_the_values_of_the_store(listed: Page, reader: StoreReader) -> None:
    found = {name: column(listed, name) for name in ("Index", "Id", "Tokens", "Images", "Labels", "Data set")}
    assert found["Index"] == [str(index) for index in range(50)]
    unusable = {entry.index: entry.id for entry in reader.quarantined}
    for row, index in enumerate(range(50)):
        shown = [found[name][row] for name in ("Id", "Tokens", "Images", "Labels", "Data set")]
        if index in unusable:
            assert shown[:2] == [unusable[index], "–"]
            continue
        (at,) = reader.find(index=index)
        counts = (reader.num_tokens[at], reader.num_images[at], reader.num_supervised[at])
        assert shown == [reader.ids[at], *map(str, counts), reader.sources[reader.source_of[at]]]
    assert len(unusable) == 11 and listed.locator("#shown").inner_text() == "1–50 of 130"


def test_pages_and_sorting_go_through_all_samples(listed: Page, reader: StoreReader) -> None:
    listed.locator("#rows th button", has_text="Tokens").click()
    expect(listed.locator("#rows th[aria-sort=ascending]")).to_have_text("Tokens ↑")
    listed.locator("#rows th button", has_text="Tokens").click()
    expect(listed.locator("#rows th[aria-sort=descending]")).to_have_text("Tokens ↓")
    wanted = sorted(reader.num_tokens.tolist(), reverse=True)
    expect(listed.locator(ROWS).first.locator("td").nth(3)).to_have_text(str(wanted[0]))
    found = column(listed, "Tokens")
    for start in (50, 100):
        listed.locator("#after").click()
        expect(listed.locator("#shown")).to_have_text(re.compile(f"^{start + 1}–"))
        found += column(listed, "Tokens")
    assert found == [*map(str, wanted), *["–"] * 11]
    assert listed.locator("#after").is_disabled()
    assert re.search(r"sort=tokens&desc=1", listed.url) and "token=" not in listed.url.replace("sort=token", "")


def test_search_id_and_data_set_filter(listed: Page, reader: StoreReader) -> None:
    listed.locator("#search").fill("red")
    red = [index for index in reader.dataset_index.tolist() if index % 6 == 0]
    matching(listed, len(red))
    assert column(listed, "Index") == [str(index) for index in sorted(red)]
    listed.locator("#id").fill("ple 06")
    wanted = [index for index in sorted(red) if f"sample {index:03d}".find("ple 06") >= 0]
    matching(listed, len(wanted))
    assert column(listed, "Index") == [*map(str, wanted)]
    listed.locator("#clear").click()
    matching(listed, 130)
    listed.locator("#source").select_option("first set")
    matching(listed, sum(source.num_samples for source in reader.manifest.all_sources()[:1]))
    assert set(column(listed, "Data set")) == {"first set"}


def test_quarantined_samples_have_their_reasons(listed: Page, reader: StoreReader) -> None:
    listed.locator("#show").get_by_text("Quarantined").click()
    matching(listed, 11)
    wanted = sorted((entry.index, entry.reason) for entry in reader.quarantined)
    assert list(zip(map(int, column(listed, "Index")), column(listed, "Conversation"), strict=True)) == wanted
    assert listed.locator("#reasons li").all_inner_texts() == ["11\nimage is damaged"]
    assert listed.locator(f"{ROWS} a").count() == 0  # they have no record
    listed.locator("#show").get_by_text("Usable").click()
    matching(listed, 119)


SUM = """([name, kind, wanted]) => {
    const bars = [...document.querySelectorAll(`[data-column=${name}] rect.${kind}`)];
    return bars.reduce((sum, bar) => sum + Number(bar.dataset.count), 0) === wanted;
}"""


def bars(page: Page, name: str, kind: str, wanted: int) -> None:
    """Wait until the counts of one kind of bars of a histogram have a sum."""
    page.wait_for_function(SUM, arg=[name, kind, wanted])


def test_histograms_count_the_values(listed: Page, reader: StoreReader) -> None:
    for name, values in (("tokens", reader.num_tokens), ("supervised", reader.num_supervised)):
        drawn = listed.locator(f"[data-column={name}] rect.all").evaluate_all(
            "bars => bars.map(bar => [Number(bar.dataset.bin), Number(bar.dataset.count)])"
        )
        # few different values: one bin for each
        wanted = np.bincount(values - values.min())
        assert dict(map(tuple, drawn)) == {bin: count for bin, count in enumerate(wanted.tolist()) if count}
        box = listed.locator(f"[data-column={name}] input")
        ends = [box.nth(at).get_attribute("placeholder") for at in (0, 1)]
        assert ends == [str(values.min()), str(values.max())]


def brush(page: Page, name: str, start: float, end: float) -> None:
    """Drag over a histogram between two shares of its width."""
    box = page.locator(f"[data-column={name}] svg").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (start + end) / 2 * box["width"], y, steps=3)
    page.mouse.move(box["x"] + end * box["width"], y, steps=3)
    page.mouse.up()


def test_brushing_one_histogram_filters_rows_and_the_others(listed: Page, reader: StoreReader) -> None:
    brush(listed, "tokens", 0.3, 0.7)
    expect(listed.locator("[data-column=tokens]")).to_have_class(re.compile("active"))
    low, high = (int(listed.locator("[data-column=tokens] input").nth(at).input_value()) for at in (0, 1))
    tokens = reader.num_tokens
    assert tokens.min() < low < high < tokens.max()
    kept = (tokens >= low) & (tokens <= high)
    matching(listed, int(kept.sum()))
    assert {low <= int(value) <= high for value in column(listed, "Tokens")} == {True}
    bars(listed, "supervised", "matching", int(kept.sum()))
    bars(listed, "supervised", "all", 119)
    # the own range does not empty the histogram that is brushed
    bars(listed, "tokens", "matching", 119)

    # a second range, typed; the address line holds both
    field = listed.locator("[data-column=supervised] input").first
    field.fill("6")
    field.press("Enter")
    both = kept & (reader.num_supervised >= 6)
    matching(listed, int(both.sum()))
    assert f"range.tokens={low}..{high}" in listed.url and "range.supervised=6.." in listed.url
    listed.reload()
    matching(listed, int(both.sum()))
    listed.locator("[data-column=tokens] svg").click()  # a click clears
    matching(listed, int((reader.num_supervised >= 6).sum()))


def test_perplexity_of_the_rows_is_that_of_the_labels(listed: Page, reader: StoreReader) -> None:
    """From the log-probabilities that the reader gives."""
    for index, shown in list(zip(column(listed, "Index"), column(listed, "Perplexity"), strict=True))[:10]:
        (at,) = reader.find(index=int(index))
        labels = reader[at].labels[1:]
        logprobs = reader.logprobs(at).of(labels[labels != -100])
        assert float(shown.replace(",", "")) == pytest.approx(float(np.exp(-logprobs.mean())), rel=6e-3)


def test_keys_move_and_open(listed: Page, reader: StoreReader) -> None:
    for key in ("j", "j", "ArrowDown", "k"):
        listed.keyboard.press(key)
    order = np.argsort(reader.dataset_index)
    assert listed.evaluate("document.activeElement.textContent") == reader.ids[int(order[1])]
    listed.keyboard.press("ArrowRight")
    expect(listed.locator("#shown")).to_have_text("51–100 of 130")
    listed.keyboard.press("/")
    listed.keyboard.type("j")  # a letter in a field is text
    assert listed.locator("#search").input_value() == "j"
    matching(listed, 0)
    listed.locator("#search").fill("")
    matching(listed, 130)
    listed.keyboard.press("Escape")
    listed.keyboard.press("?")
    expect(listed.locator("#help")).to_be_visible()
    listed.keyboard.press("Escape")
    expect(listed.locator("#help")).to_be_hidden()
    listed.keyboard.press("j")
    listed.keyboard.press("Enter")
    expect(listed.locator("h1")).to_contain_text(reader.ids[int(order[0])])


def test_the_page_is_dark_where_the_user_wants_it(served: Any, open_page: Any) -> None:
    page: Page = open_page(served.at("/"))
    look = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    light = sum(page.evaluate(look))
    page.emulate_media(color_scheme="dark")
    assert sum(page.evaluate(look)) < 200 < 600 < light
