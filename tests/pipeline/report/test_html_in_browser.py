"""The page in a real browser: what it shows, and what a stranger's run cannot make it do."""

import json
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from report_pages import data_of, write_run

from alignkd.pipeline.report.report import make_report

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists() and "CI" not in os.environ, reason="no Chromium"),
]
HURT = "document.documentElement.dataset.hurt = 1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_values_under_the_pointer_and_hidden_runs(browser: Any, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 40, validated=True) for name in "ab"]
    report = make_report(runs)
    (tmp_path / "page.html").write_text(report.html())
    page, problems = browser.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    chart = page.locator("svg[data-chart]").first
    chart.focus()
    page.keyboard.press("End")
    shown = page.locator(".readout").first.locator("span").all_inner_texts()
    last = report.to_json()[0]["curves"]["loss"][-1]
    assert shown[0] == f"a @40: {last[1]:.6g}" and shown[1] == f"a validation @40: {4.0 / 40:.6g}"
    assert [text[0] for text in shown] == ["a", "a", "b", "b"]
    chart.hover(position={"x": 60, "y": 60})
    assert page.locator(".readout").first.inner_text() != "\n".join(shown)
    page.get_by_label("a", exact=True).uncheck()
    assert not page.locator('figure [data-run="0"]').first.is_visible()
    chart.hover(position={"x": 200, "y": 60})
    assert {text[0] for text in page.locator(".readout").first.locator("span").all_inner_texts()} == {"b"}
    assert problems == []
    page.close()


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


def test_a_hostile_run_does_no_harm(browser: Any, asked: tuple[str, list[str]], tmp_path: Path) -> None:
    """Names, settings and figures that are scripts, elements and addresses; also where escaping fails."""
    address, paths = asked
    name = f'"><img src=x onerror="{HURT}">'
    script = f"</script><script>{HURT}</script><img src={address}/x>"
    run = write_run(tmp_path / name, 3, preset=script, losses={script: f"url({address}/y)"})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 1.0, "samples_seen": 16, script: 2.0, "\u2028": 1.0}) + "\n")
    content = make_report([run, write_run(tmp_path / "tame", 3)]).html()
    # as if the page had put a name into its markup
    unescaped = content.replace("</header>", f"</header>{script}<a onclick='{HURT}' id=go>go</a>")
    unprotected = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", unescaped)
    for number, text in enumerate((content, unescaped, unprotected)):
        (tmp_path / "page.html").write_text(text)
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        for chart in page.locator("svg[data-chart]").all():
            chart.focus()
            page.keyboard.press("End")
        if number:
            page.locator("#go").click()
        hurt = page.evaluate("document.documentElement.dataset.hurt")
        assert (hurt, paths) == ((None, []) if number < 2 else ("1", ["/x"])), "the last one: the test would see it"
        assert page.locator("ul.runs label").first.inner_text().strip() == name == data_of(text)["runs"][0]
        page.close()
