"""What strangers write into samples, stores and names reaches no terminal as a command."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkd.pipeline.console.plain_text import PlainTextStream, plain

ROOT = Path(__file__).parents[3]
# sets the window's title; asks the terminal to type its answer; the same with the one-byte form of ESC [
HOSTILE = "\x1b]0;owned\x07\x1b[6n\x9b6n\rok"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-m", "alignkd", *arguments], capture_output=True, text=True, env=environment
    )


def test_control_characters_are_written_as_in_json() -> None:
    assert plain(HOSTILE) == r"\u001b]0;owned\u0007\u001b[6n\u009b6n\u000dok"
    kept = "Zeilen\nund\tSpalten, 漢字, é, \u00a0, 🙂"
    assert plain(kept) == kept


def test_the_stream_writes_the_same_bytes_for_other_texts() -> None:
    raw = io.BytesIO()
    under = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace", write_through=True)
    stream = PlainTextStream.over(under)
    assert stream.write("a\x1bé\n") == 4
    stream.flush()
    assert raw.getvalue() == b"a\\u001b\\xe9\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    turns = [{"from": "human", "value": HOSTILE}, {"from": "gpt", "value": HOSTILE}]
    path = tmp_path_factory.mktemp("data") / "data.json"
    path.write_text(json.dumps([{"id": HOSTILE, "conversations": turns}]), encoding="utf-8")
    return path


def test_results_and_messages_hold_no_command_for_the_terminal(data: Path) -> None:
    shown = run("data", "show", str(data))
    assert shown.returncode == 0 and r"\u001b]0;owned" in shown.stdout
    failed = run("shards", "ls", f"/nowhere/{HOSTILE}")
    assert failed.returncode == 1 and r"\u001b]0;owned" in failed.stderr
    for text in (shown.stdout, failed.stderr):
        assert all(plain(line) == line for line in text.splitlines()) and "\r" not in text


def test_json_keeps_the_text(data: Path) -> None:
    shown = run("data", "show", str(data), "--json")
    assert plain(shown.stdout) == shown.stdout
    assert json.loads(shown.stdout)["id"] == HOSTILE
