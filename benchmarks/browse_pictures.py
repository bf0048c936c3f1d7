"""The pictures of docs/browse.md: pages of `alignkd shards browse` over the stores that `alignkd demo` leaves.

    alignkd demo
    python benchmarks/browse_pictures.py demo-out

Needs Chromium and the extras `browse` and `dev`. Writes docs/pictures/browse-*.png, and the index into the store.
"""

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import click
import yaml
from playwright.sync_api import Page, sync_playwright

from alignkd.pipeline.browse.web.app import guarded_app
from alignkd.pipeline.browse.web.opened import Browser
from alignkd.pipeline.browse.web.server import listening, make_server
from alignkd.storage.places import load_manifest
from alignkd.storage.read.listing import list_shards

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, HEIGHT = 1280, 800
TOKEN = "pictures"
# the store of most rows of the demo
STORE = "tqv"
# words of its questions
WORDS = ("row", "column", "digit", "many")
SECONDS_FOR_DUMP = 300


@contextmanager
def served(store: Path, **options: object) -> Iterator[str]:
    """The URL of a server over a store whose index is complete, up to the path."""
    with Browser.open([store], **options) as browser, listening("127.0.0.1", 0) as socket:
        for opened in browser.stores:
            opened.index.wait()
        port = int(socket.getsockname()[1])
        ready = threading.Event()
        server = make_server(guarded_app(browser, token=TOKEN, host="127.0.0.1", port=port), started=ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        ready.wait()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def save(page: Page, name: str) -> None:
    """Write what is visible of a page."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    path = PICTURES / f"browse-{name}.png"
    page.screenshot(path=path)
    click.echo(f"wrote {path}")


def picture_list(page: Page, url: str) -> None:
    """The list, sorted by perplexity, after a range of tokens was brushed."""
    page.goto(f"{url}/?token={TOKEN}&sort=perplexity&desc=1")
    plot = page.locator("[data-column=tokens] svg")
    plot.wait_for()
    page.locator("[data-column=tokens] rect").first.wait_for()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 20, steps=5)
    page.mouse.up()
    page.mouse.move(5, 5)
    save(page, "list")


def picture_record(page: Page, url: str) -> str:
    """The first record of the list: attention of a word of its question, and the prediction of its least likely token.

    Returns:
        Its key.
    """
    page.locator("#rows tbody a").first.click()
    page.locator("#heads button").first.wait_for()
    position = int(page.url.split("/record/")[1].split("?")[0])
    record = page.request.get(f"{url}/api/record/{position}").json()
    words = [token for token in record["tokens"] if token["is_query"] and token["piece"].strip("\u2581") in WORDS]
    page.locator(f".token[data-position='{words[0]['position']}']").click()
    page.locator(".token[aria-pressed=true]").wait_for()
    labels = [token for token in record["tokens"] if token["prediction"]]
    least = min(labels, key=lambda token: token["prediction"]["label_probability"])
    page.locator(f".token[data-position='{least['position']}']").hover()
    save(page, "record")
    return str(record["key"])


def picture_comparison(page: Page, url: str, key: str) -> None:
    """The teacher and a student on a record."""
    page.goto(f"{url}/compare/{key}?with=student&token={TOKEN}")
    page.locator("#maps .top").first.wait_for(state="attached", timeout=120_000)
    save(page, "compare")


@contextmanager
def running_dump(demo: Path, folder: Path) -> Iterator[Path]:
    """Two workers that dump the demo's training set again; the block begins when both work."""
    config = yaml.safe_load(sorted((demo / "configs").glob("*.yaml"))[0].read_text())
    store = folder / "store"
    config = {name: config[name] for name in ("data", "teacher")} | {
        "store": {"path": str(store), "shard_size": 64, "attention": "float16", "logits": {"kind": "topk"}}
    }
    (folder / "dump.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "alignkd.pipeline.cli", "dump", str(folder / "dump.yaml"), "--worker"]
    workers = [subprocess.Popen([*command, f"{rank}/2"], stderr=subprocess.DEVNULL) for rank in range(2)]
    try:
        limit = time.monotonic() + SECONDS_FOR_DUMP
        while not (store / "manifest.json").exists() or sum(one.committed for one in list_shards(store)) < 4:
            if time.monotonic() > limit or any(worker.poll() for worker in workers):
                raise click.ClickException("the dump does not get on; run `alignkd demo` again")
            time.sleep(0.1)
        yield store
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            worker.wait()


def picture_dump(page: Page, url: str) -> None:
    """A running dump, after its rate was measured a few times."""
    page.goto(f"{url}/dump?token={TOKEN}")
    page.locator("#workers tbody tr").nth(1).wait_for()
    page.wait_for_timeout(4000)
    path = PICTURES / "browse-dump.png"
    page.screenshot(path=path)
    click.echo(f"wrote {path}")


@click.command()
@click.argument("demo", type=click.Path(exists=True, path_type=Path))
@click.option("--student", type=click.Path(exists=True, path_type=Path), help="Default: the first one of the demo.")
def main(demo: Path, student: Path | None) -> None:
    """Draw the pages over the stores of DEMO, the folder that `alignkd demo` wrote."""
    chromium = which("chromium") or which("chromium-browser")
    if chromium is None:
        raise click.ClickException("no chromium on the path; install it")
    store = demo / "stores" / STORE
    load_manifest(store)
    student = student or next(iter(sorted(demo.glob("students/*/seed-0/student"))))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chrome = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = chrome.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        with served(store, images=demo / "data" / "train" / "images", student=student) as url:
            picture_list(page, url)
            picture_comparison(page, url, picture_record(page, url))
        with running_dump(demo, Path(folder)) as running, served(running) as url:
            picture_dump(page, url)
        chrome.close()


if __name__ == "__main__":
    main()
