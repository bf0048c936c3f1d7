"""The comparison of two stores, and of a teacher with a student, in a real browser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from browsed_store import COLUMNS, ROWS, made_store
from matplotlib import colormaps
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from alignkd.storage import Record, StoreReader, TruncatedLogits

pytestmark = pytest.mark.browser
PIXELS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[StoreReader]:
    folder = tmp_path_factory.mktemp("compare")
    return [StoreReader(made_store(folder / f"teacher-{seed}", samples=40, seed=seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def records(readers: list[StoreReader]) -> list[Record]:
    """Sample 5 of both."""
    return [reader[reader.find(index=5)[0]] for reader in readers]


@pytest.fixture(scope="module")
def served(readers: list[StoreReader], serve: Any) -> Any:
    return serve(*(reader.path for reader in readers))


@pytest.fixture
def compared(served: Any, open_page: Any, records: list[Record]) -> Page:
    page: Page = open_page(served.at(f"/compare/{records[0].key}"))
    expect(page.locator("#maps .legend")).to_have_count(3)
    return page


def mean_map(record: Record, row: int | None = None) -> NDArray[np.float32]:
    """Attention of the mean over heads, and over queries or of one of them, [rows, columns]."""
    heads_mean: NDArray[np.float32] = np.asarray(record.attention, np.float32)[0].mean(1)
    found: NDArray[np.float32] = heads_mean.mean(0) if row is None else heads_mean[row]
    return found.reshape(ROWS, COLUMNS)


def assert_drawn(page: Page, number: int, values: NDArray[Any], least: float, most: float, colours: str) -> None:
    canvas = page.locator("#maps figure canvas").nth(number)
    found = np.array(canvas.evaluate(PIXELS), int).reshape(len(values), -1, 4)[..., :3]
    wanted = colormaps[colours]((values - least) / (most - least), bytes=True)[..., :3].astype(int)
    assert np.abs(found - wanted).max() <= 6


def assert_maps(page: Page, first: NDArray[Any], second: NDArray[Any]) -> None:
    """Both maps on one scale, and their difference around zero."""
    most, widest = max(first.max(), second.max()), np.abs(first - second).max()
    expect(page.locator("#maps .legend").first).to_contain_text(f"{most:.3g}")
    assert_drawn(page, 0, first, 0, most, "inferno")
    assert_drawn(page, 1, second, 0, most, "inferno")
    assert_drawn(page, 2, first - second, -widest, widest, "RdBu_r")


def known(record: Record, number: int) -> dict[int, float]:
    logits = record.logits
    assert isinstance(logits, TruncatedLogits)
    entries = slice(logits.offsets[number], logits.offsets[number + 1])
    return dict(zip(logits.ids[entries].tolist(), np.exp(logits.logprobs[entries].astype(float)).tolist(), strict=True))


def distance(records: list[Record], number: int) -> float:
    """Total variation distance of a label's predictions, the tokens that one side lacks as one outcome."""
    one, other = (known(record, number) for record in records)
    both = one.keys() & other.keys()
    rest = abs(sum(one[token] for token in both) - sum(other[token] for token in both))
    return 0.5 * (sum(abs(one[token] - other[token]) for token in both) + rest)


def test_maps_and_their_difference(compared: Page, records: list[Record]) -> None:
    assert_maps(compared, mean_map(records[0]), mean_map(records[1]))
    query = int(records[0].tqv_query_positions[4])
    compared.locator(f".token[data-position='{query}']").click()
    expect(compared.locator(f".token[data-position='{query}'][aria-pressed=true]")).to_be_visible()
    assert_maps(compared, mean_map(records[0], 4), mean_map(records[1], 4))
    assert compared.locator("#maps h2").all_inner_texts() == ["teacher-0", "teacher-1", "Difference"]


def test_distances_of_the_predictions(compared: Page, records: list[Record]) -> None:
    labels = records[0].labels[records[0].labels != -100]
    wanted = {number: distance(records, number) for number in range(len(labels))}
    order = sorted(wanted, key=lambda number: -wanted[number])
    rows = compared.locator("#differences tbody tr")
    assert rows.count() == len(labels)
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == [f"word{labels[number]}" for number in order]
    assert [float(row.split("\t")[2]) for row in rows.all_inner_texts()] == pytest.approx(
        [wanted[number] for number in order], rel=6e-3
    )
    tokens = compared.locator(".token.supervised")
    for number in range(len(labels)):  # a darker token differs more
        shade = sum(wanted[number] >= least for least in (0.01, 0.05, 0.15, 0.35, 0.6))
        classes = (tokens.nth(number).get_attribute("class") or "").split()
        assert [name for name in classes if name.startswith("tv")] == ([f"tv{shade}"] if shade else [])
    tokens.nth(order[0]).hover()
    expect(compared.locator(".tip table")).to_have_count(2)
    for side, record in enumerate(records):
        best = max(known(record, order[0]).items(), key=lambda entry: entry[1])
        first_row = compared.locator(".tip table").nth(side).locator("tr").first.inner_text().split("\t")
        assert first_row[0].strip() == f"word{best[0]}" and float(first_row[-1]) == pytest.approx(best[1], abs=6e-4)


def test_the_record_leads_to_the_comparison_and_back(served: Any, open_page: Any, readers: list[StoreReader]) -> None:
    position = readers[0].find(index=5)[0]
    page: Page = open_page(served.at(f"/record/{position}?q=colour"))
    page.locator("#compare").click()
    expect(page.locator("h1")).to_contain_text("teacher-0 and teacher-1")
    page.locator("#record").click()
    expect(page.locator("h1 small")).to_have_text("index 5")
    assert "q=colour" in page.url


def test_a_key_of_neither_store_is_one_line(served: Any, open_page: Any) -> None:
    page: Page = open_page(served.at(f"/compare/{'0' * 64}"), fails=True)
    expect(page.locator("#problem")).to_contain_text("no record with key")


def test_a_student_beside_the_teacher(
    tmp_path: Path, golden: Path, golden_images: Path, alignkd_here: Any, serve: Any, open_page: Any
) -> None:
    """The golden student: its map and its probabilities are those that `RecordViews` computes as training does."""
    model = {"checkpoint": str(golden / "teacher"), "vision_config": str(golden / "clip"), "dtype": "float32"}
    data = {"conversations": str(golden / "v1.json"), "images": str(golden_images), "template": "v1"}
    target = {"path": str(tmp_path / "store"), "attention": "float32", "logits": {"kind": "full"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": data, "teacher": model, "store": target}))
    assert alignkd_here("dump", tmp_path / "run.yaml").returncode == 0
    options = {"images": golden_images, "student": golden / "student", "student_vision_config": golden / "clip"}
    served = serve(tmp_path / "store", **options)
    views = served.browser.stores[0].views
    position = int(views.reader.has_image.argmax())
    page: Page = open_page(served.at(f"/compare/{views.reader.keys[position]}"))
    expect(page.locator("#maps .legend")).to_have_count(3)
    teacher, student = (views.attention(position, student=is_student).maps[0] for is_student in (False, True))
    assert np.abs(teacher - student).max() > 1e-4
    assert_maps(page, teacher, student)
    page.locator(".token.supervised").first.hover()
    expect(page.locator(".tip table")).to_have_count(2)
    for side, found in enumerate((views.record_page(position).tokens, None)):
        predictions = (
            views.student_page(position).predictions
            if found is None
            else [one.prediction for one in found if one.supervised]
        )
        best = predictions[0].top[0]
        first_row = page.locator(".tip table").nth(side).locator("tr").first.inner_text().split("\t")
        assert float(first_row[-1]) == pytest.approx(best.probability, rel=0.06, abs=6e-4)


def test_the_header_leads_to_the_list_of_each_store(served: Any, open_page: Any, readers: list[StoreReader]) -> None:
    page: Page = open_page(served.at("/"))
    perplexities = []
    for name, reader in zip(("teacher-0", "teacher-1"), readers, strict=True):
        page.locator("header .store", has_text=name).click()
        expect(page.locator("#matching")).to_have_text("40 samples")
        (position,) = reader.find(index=0)
        labels = reader[position].labels[1:]
        wanted = float(np.exp(-reader.logprobs(position).of(labels[labels != -100]).mean()))
        shown = float(page.locator("#rows tbody tr").first.locator("td").nth(6).inner_text())
        assert shown == pytest.approx(wanted, rel=6e-3)
        perplexities.append(wanted)
    assert perplexities[0] != pytest.approx(perplexities[1], rel=1e-2)
