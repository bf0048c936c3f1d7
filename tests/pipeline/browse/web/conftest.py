"""A server of the pages in a thread of this process, and a headless Chromium that opens them."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_records import make_manifest, make_record, write_store
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, expect, sync_playwright

from alignkd.pipeline.browse.web.app import guarded_app
from alignkd.pipeline.browse.web.opened import Browser
from alignkd.pipeline.browse.web.server import listening, make_server

__all__ = ["make_manifest", "make_record", "write_store"]

TOKEN = "token-of-the-tests"
# milliseconds; a limit against hanging, since a loaded machine may take long
PATIENCE = 120_000.0
WIDTH, HEIGHT = 1280, 900


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: without a path.
        browser: what is open.
    """

    url: str
    browser: Browser

    def at(self, path: str) -> str:
        """The URL of a page, with the token."""
        return f"{self.url}{path}{'&' if '?' in path else '?'}token={TOKEN}"


Serve = Callable[..., Served]
OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Debian's Chromium; without one the tests are skipped, but fail where CI is set."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        line = "no chromium on the path; `apt-get install chromium` (or any package of that name) runs these tests"
        if os.environ.get("CI"):
            pytest.fail(line)
        pytest.skip(line)
    return found


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Chromium]:
    """One browser for the tests of a module."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        # root needs --no-sandbox, containers have a small /dev/shm
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium_path, args=arguments, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """serve(store, ..., images=FOLDER, student=FOLDER): a server of stores, whose indexes are complete."""
    with ExitStack() as stack:

        def start(*stores: Path, **options: Path) -> Served:
            browser = stack.enter_context(Browser.open(list(stores), **options))
            socket = stack.enter_context(listening("127.0.0.1", 0))
            port = int(socket.getsockname()[1])
            ready = threading.Event()
            app = guarded_app(browser, token=TOKEN, host="127.0.0.1", port=port)
            server = make_server(app, started=ready.set)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            ready.wait()
            for store in browser.stores:
                store.index.wait()
            return Served(f"http://127.0.0.1:{port}", browser)

        yield start


@pytest.fixture
def open_page(chromium: Chromium) -> Iterator[OpenPage]:
    """open_page(url): a page in a browser without any cookie; it fails the test if a script of it fails.

    open_page(url, fails=True): errors are expected.
    """
    context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    context.set_default_timeout(PATIENCE)
    failures: list[str] = []

    def opened(url: str, *, fails: bool = False) -> Page:
        page = context.new_page()
        if not fails:
            page.on("pageerror", lambda error: failures.append(str(error)))
            # a page that breaks the Content-Security-Policy, or asks for a file that is not there, says so here
            page.on("console", lambda line: failures.append(line.text) if line.type == "error" else None)
        page.goto(url)
        return page

    yield opened
    context.close()
    assert not failures
