"""`alignkd shards browse` as a process: its URL, its end, and what it needs; without a web browser."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsed_store import made_store
from click.testing import CliRunner

from alignkd.pipeline.browse.web.server import listening
from alignkd.pipeline.cli import main


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_store(tmp_path_factory.mktemp("command") / "store", samples=40)


@contextmanager
def browsing(*arguments: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command as a process, and the URL that it prints."""
    command = [sys.executable, "-m", "alignkd.pipeline.cli", "shards", "browse", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "src")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_it_prints_a_url_and_ends_with_130(store: Path, patience: float) -> None:
    with browsing(store) as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", url)
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200 and b"<main" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(url.partition("?")[0])
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=patience)
    assert process.returncode == 130 and output == ""
    assert [line.partition(";")[0] for line in errors.splitlines()] == [
        "alignkd: Ctrl-C ends the server",
        "alignkd: interrupted",
    ]


def test_a_used_port_is_one_line(store: Path) -> None:
    with listening("127.0.0.1", 0) as used:
        used.listen()
        port = str(used.getsockname()[1])
        found = CliRunner().invoke(main, ["shards", "browse", str(store), "--port", port])
    assert found.exit_code == 1 and len(found.stderr.splitlines()) == 1
    assert f"--port {port}" in found.stderr and "choose another" in found.stderr


def test_a_missing_extra_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found_spec(name))
    found = CliRunner().invoke(main, ["shards", "browse", str(store)])
    assert found.exit_code == 1
    assert found.stderr == "alignkd: alignkd shards browse needs uvicorn: pip install 'alignkd[browse]'\n"


def test_what_is_no_store_is_one_line(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["shards", "browse", str(tmp_path / "none")])
    assert found.exit_code == 1 and len(found.stderr.splitlines()) == 1 and "none" in found.stderr


_LOADED = """
import sys
from pathlib import Path
from alignkd.pipeline.browse.web.app import ANSWERS, make_app
from alignkd.pipeline.browse.web.asking import Asked
from alignkd.pipeline.browse.web.opened import Browser
with Browser.open([Path(sys.argv[1])]) as browser:
    make_app(browser)
    browser.stores[0].index.wait()
    for path, handler in ANSWERS.items():
        if "compare" not in path:
            handler(browser, Asked({"position": 0, "number": 0}, {"column": ["tokens"], "position": ["0"]}))
print(sorted({"torch", "transformers", "deepspeed"} & {*sys.modules}))
"""


def test_pages_of_a_store_load_no_torch(store: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "src")}
    done = subprocess.run([sys.executable, "-c", _LOADED, store], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_rest_of_alignkd_shards_loads_no_web_framework() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom alignkd.pipeline.cli import main\n"
        "CliRunner().invoke(main, ['shards', 'browse', '--help'])\n"
        "print(sorted({'starlette', 'uvicorn', 'jinja2', 'sqlite3', 'torch'} & {*sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr
