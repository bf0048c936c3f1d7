"""The page of a record in a real browser: maps, outlines, predictions and links equal the store's values."""

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsed_store import COLUMNS, HEADS, ROWS, TOP, made_image, made_store
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from alignkd.storage import Record, Shapes, StoreReader, TruncatedLogits

pytestmark = pytest.mark.browser
SECONDS_FOR_MAPS = 60.0
PIXELS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_store(tmp_path_factory.mktemp("record") / "store", samples=60)


@pytest.fixture(scope="module")
def reader(store: Path) -> StoreReader:
    return StoreReader(store)


@pytest.fixture(scope="module")
def served(store: Path, serve: Any) -> Any:
    return serve(store)


def place(reader: StoreReader, index: int) -> int:
    (found,) = reader.find(index=index)
    return found


@pytest.fixture
def opened(served: Any, open_page: Any, reader: StoreReader) -> Page:
    """The page of sample 5."""
    page: Page = open_page(served.at(f"/record/{place(reader, 5)}"))
    expect(page.locator("#heads button")).to_have_count(HEADS)
    return page


def maps(record: Record) -> NDArray[np.float32]:
    """Attention [heads, queries, rows, columns]."""
    attention = np.asarray(record.attention, np.float32)[0].transpose(1, 0, 2)
    return attention.reshape(*attention.shape[:2], ROWS, COLUMNS)


def drawn(canvas: Locator) -> NDArray[np.uint8]:
    """Red, green and blue of each vision token."""
    return np.array(canvas.evaluate(PIXELS), np.uint8).reshape(ROWS, COLUMNS, 4)[..., :3]


def coloured(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The colours of a map from 0 to its largest value."""
    found: NDArray[np.uint8] = colormaps["inferno"](values / values.max(), bytes=True)[..., :3]
    return found


def same_colours(canvas: Locator, values: NDArray[Any]) -> None:
    """Wait until a map is drawn; a value on the edge between two of 256 colours may have either."""
    wanted = coloured(values).astype(int)
    expect(canvas).to_be_visible()
    limit = time.monotonic() + SECONDS_FOR_MAPS
    while np.abs(drawn(canvas).astype(int) - wanted).max() > 4:
        assert time.monotonic() < limit, drawn(canvas).tolist()
        canvas.page.wait_for_timeout(20)


def outlined(page: Page) -> list[int]:
    found = page.locator("#images .top").evaluate_all("marks => marks.map(mark => Number(mark.dataset.token))")
    return sorted(found)


def test_the_map_of_the_mean_a_token_and_a_head(opened: Page, reader: StoreReader) -> None:
    record = reader[place(reader, 5)]
    attention, canvas = maps(record), opened.locator("#images canvas")
    same_colours(canvas, attention.mean((0, 1)))

    query = int(record.tqv_query_positions[3])
    opened.locator(f".token[data-position='{query}']").click()
    expect(opened.locator(".token[aria-pressed=true]")).to_have_attribute("data-position", str(query))
    of_token = attention.mean(0)[3]
    same_colours(canvas, of_token)
    assert outlined(opened) == sorted(np.argsort(-of_token.ravel())[:TOP].tolist())
    assert f"query={query}" in opened.url
    expect(opened.locator(".legend").first).to_contain_text(f"{of_token.max():.3g}")

    opened.locator("#head").select_option("1")
    same_colours(canvas, attention[1, 3])
    assert outlined(opened) == sorted(np.argsort(-attention[1, 3].ravel())[:TOP].tolist())
    for head in range(HEADS):  # the small maps of the same token
        same_colours(opened.locator("#heads canvas").nth(head), attention[head, 3])
    opened.locator("#heads button").nth(2).click()
    same_colours(canvas, attention[2, 3])

    opened.reload()  # the address holds layer, head and token
    same_colours(canvas, attention[2, 3])
    opened.keyboard.press("m")
    same_colours(canvas, attention[2].mean(0))
    opened.keyboard.press("[")
    same_colours(canvas, attention[1].mean(0))


def test_the_map_lies_on_the_image(opened: Page, reader: StoreReader) -> None:
    """The image is 40 x 30, padded to a square: the grid reaches 5 pixels beyond it above and below."""
    image, canvas = (opened.locator(f"#images {name}").bounding_box() for name in ("img", "canvas"))
    assert image is not None and canvas is not None
    scale = image["width"] / 40
    assert image["height"] == pytest.approx(30 * scale, abs=1) and canvas["width"] == pytest.approx(40 * scale, abs=1)
    assert canvas["height"] == pytest.approx(40 * scale, abs=1)
    assert canvas["y"] - image["y"] == pytest.approx(-5 * scale, abs=1)
    shown = opened.request.get(opened.locator("#images img").evaluate("image => image.src")).body()
    assert (np.asarray(Image.open(io.BytesIO(shown))) == np.asarray(Image.open(io.BytesIO(made_image(5))))).all()


def test_supervised_tokens_and_the_teachers_predictions(opened: Page, reader: StoreReader) -> None:
    record = reader[place(reader, 5)]
    labels = record.labels[record.labels != -100]
    marked = opened.locator(".token.supervised")
    assert marked.all_inner_texts() == [f"word{label}" for label in labels]
    logits = record.logits
    assert isinstance(logits, TruncatedLogits) and logits.tail_logmass is not None
    for number in (0, len(labels) - 1):
        marked.nth(number).hover()
        expect(opened.locator(".tip")).to_be_visible()
        entries = slice(logits.offsets[number], logits.offsets[number + 1])
        ids, probs = logits.ids[entries], np.exp(logits.logprobs[entries].astype(np.float64))
        order = np.argsort(-probs, kind="stable")
        rows = [row.split("\t") for row in opened.locator(".tip tr").all_inner_texts()]
        assert [row[0].strip() for row in rows[: len(ids)]] == [f"word{ids[at]}" for at in order]
        shown = [float(row[-1]) for row in rows[: len(ids) + 1]]
        assert shown[:-1] == pytest.approx(probs[order].tolist(), abs=6e-4)
        assert rows[len(ids)][0].strip() == "not stored"
        assert shown[-1] == pytest.approx(np.exp(float(logits.tail_logmass[number])), abs=6e-4)
        rank = 1 + int((probs > probs[ids == labels[number]]).sum())
        assert rows[-1][0].strip() == f"label has rank {rank}"
        assert opened.locator(".tip .is-label").inner_text().split("\t")[0].strip() == f"word{labels[number]}"
        widths = opened.locator(".tip tr rect").evaluate_all("bars => bars.map(bar => bar.width.baseVal.value / 80)")
        assert widths[: len(ids)] == pytest.approx(probs[order].tolist(), rel=1e-4)
    opened.mouse.move(5, 5)
    expect(opened.locator(".tip")).to_be_hidden()


def test_previous_and_next_stay_in_the_filter(served: Any, open_page: Any, reader: StoreReader) -> None:
    """Red samples (every sixth index) by descending tokens: through all of them and back."""
    red = [index for index in range(60) if index % 6 == 0 and reader.find(index=index)]
    tokens = {index: int(reader.num_tokens[place(reader, index)]) for index in red}
    page: Page = open_page(served.at("/?q=red&show=usable&sort=tokens&desc=1"))
    expect(page.locator("#matching")).to_have_text(f"{len(red)} samples")
    order = [int(text) for text in page.locator("#rows tbody td:first-child").all_inner_texts()]
    assert sorted(order) == red and [tokens[index] for index in order] == sorted(tokens.values(), reverse=True)
    page.locator("#rows tbody a").first.click()
    for number, index in enumerate(order):
        expect(page.locator("h1 small")).to_have_text(f"index {index}")
        expect(page.locator("#previous")).to_have_attribute("aria-disabled", str(number == 0).lower())
        expect(page.locator("#next")).to_have_attribute("aria-disabled", str(number == len(order) - 1).lower())
        if number < len(order) - 1:
            page.keyboard.press("j") if number % 2 else page.locator("#next").click()
    page.keyboard.press("k")
    expect(page.locator("h1 small")).to_have_text(f"index {order[-2]}")
    page.keyboard.press("u")
    expect(page.locator("#matching")).to_have_text(f"{len(red)} samples")
    assert page.locator("#search").input_value() == "red"


def test_tokens_are_reached_by_keys(opened: Page, reader: StoreReader) -> None:
    record = reader[place(reader, 5)]
    opened.locator(".token[tabindex='0']").focus()
    opened.keyboard.press("End")
    label = int(record.labels[-1])
    assert opened.evaluate("document.activeElement.textContent") == f"word{label}"
    expect(opened.locator(".tip")).to_be_visible()  # as with a pointer
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("Enter")
    query = int(record.tqv_query_positions[1])
    expect(opened.locator(".token[aria-pressed=true]")).to_have_attribute("data-position", str(query))
    same_colours(opened.locator("#images canvas"), maps(record).mean(0)[1])


def test_the_png_is_that_of_shards_show(
    opened: Page, reader: StoreReader, store: Path, tmp_path: Path, alignkd_here: Any
) -> None:
    record = reader[place(reader, 5)]
    query = int(record.tqv_query_positions[2])
    opened.locator(f".token[data-position='{query}']").click()
    opened.locator("#head").select_option("2")
    expect(opened.locator("#png")).to_have_attribute("href", re.compile(f"head=2.*query={query}|query={query}.*head=2"))
    with opened.expect_download() as download:
        opened.locator("#png").click()
    assert download.value.suggested_filename == "record-5.png"
    drawn_here = tmp_path / "here.png"
    done = alignkd_here("shards", "show", store, "--index", 5, "--png", drawn_here, "--head", 2, "--token", query)
    assert done.returncode == 0, done.stderr
    pixels = [np.asarray(Image.open(path)) for path in (download.value.path(), drawn_here)]
    assert pixels[0].shape == pixels[1].shape and (pixels[0] == pixels[1]).all()


def test_a_link_names_the_record_by_its_key(opened: Page, reader: StoreReader, served: Any, open_page: Any) -> None:
    key = reader.keys[place(reader, 5)]
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.locator("#head").select_option("1")
    expect(opened.locator("#heads button").nth(1)).to_have_attribute("aria-pressed", "true")
    opened.locator("#link").click()
    expect(opened.locator("#link")).to_have_text("Copied")
    link = opened.evaluate("navigator.clipboard.readText()")
    assert f"key={key}" in link and "head=1" in link and "token=" not in link
    # as if shards were committed since: another position, the same key
    moved = re.sub(r"/record/\d+", f"/record/{place(reader, 8)}", link)
    opened.goto(moved)
    expect(opened.locator("h1 small")).to_have_text("index 5")


def test_a_record_without_image_says_so(served: Any, open_page: Any, reader: StoreReader) -> None:
    page: Page = open_page(served.at(f"/record/{place(reader, 6)}"))
    expect(page.locator("#images")).to_contain_text("the record has no image")
    assert page.locator(".token.supervised").count() == int(reader.num_supervised[place(reader, 6)])
    assert page.locator("canvas").count() == 0


def test_an_image_that_is_not_at_hand_is_one_line(tmp_path: Path, serve: Any, open_page: Any) -> None:
    store = made_store(tmp_path / "store", samples=20, embed=False)
    reader = StoreReader(store)
    folder = tmp_path / "images"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "5.png").write_bytes(made_image(5))
    (folder / "pictures" / "8.png").write_bytes(made_image(9))  # not what the teacher saw
    served = serve(store, images=folder)
    page: Page = open_page(served.at(f"/record/{place(reader, 5)}"))
    same_colours(page.locator("#images canvas"), maps(reader[place(reader, 5)]).mean((0, 1)))
    assert page.locator("#images img").evaluate("image => image.naturalWidth") == 40
    page.goto(served.at(f"/record/{place(reader, 8)}"))
    expect(page.locator("#images .note")).to_contain_text("pictures/8.png: sha256 is")
    # the map is shown alone
    same_colours(page.locator("#images canvas"), maps(reader[place(reader, 8)]).mean((0, 1)))
    assert page.locator("#images img").count() == 0


def test_several_images_each_have_a_map_of_their_own(
    tmp_path: Path, make_manifest: Any, write_store: Any, serve: Any, open_page: Any
) -> None:
    """Up to three images of different numbers of tokens, an id for each of them, on one scale of colours."""
    shapes = Shapes(num_heads=2, hidden_size=6, vision_tokens=None, vocab_size=40, vision_top_tokens=3)
    reader = StoreReader(write_store(tmp_path / "store", make_manifest(shapes=shapes)))
    position = int(np.argmax(reader.num_images))
    record = reader[position]
    assert record.num_images > 1 and len(set(record.tokens_of_image)) > 1
    page: Page = open_page(serve(reader.path).at(f"/record/{position}"))
    expect(page.locator("#images canvas")).to_have_count(record.num_images)
    expect(page.locator("#heads button")).to_have_count(2)
    values = np.asarray(record.attention, np.float32)[0].mean((0, 1))
    parts = np.split(values, np.cumsum(record.tokens_of_image)[:-1])
    for canvas, part in zip(page.locator("#images canvas").all(), parts, strict=True):
        found = np.array(canvas.evaluate(PIXELS), int).reshape(-1, 4)[:, :3]
        wanted = colormaps["inferno"](part / values.max(), bytes=True)[:, :3].astype(int)
        assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 4
    top = [
        figure.locator(".top").evaluate_all("marks => marks.map(mark => Number(mark.dataset.token))")
        for figure in page.locator("#images figure").all()
    ]
    starts = np.cumsum([0, *record.tokens_of_image])[:-1].tolist()
    counted = sorted(start + token for start, tokens in zip(starts, top, strict=True) for token in tokens)
    assert counted == sorted(np.argsort(-values, kind="stable")[:3].tolist())


def test_a_position_that_does_not_exist_is_one_line(served: Any, open_page: Any) -> None:
    page: Page = open_page(served.at("/record/9999"), fails=True)
    expect(page.locator("#problem")).to_contain_text("9999")
