"""The process around a command: readers that end early, full and closed streams, locales, users without a home."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# commands that start in a fraction of a second
COMMANDS = (["--help"], ["shards", "ls", "--help"], ["configs", "--json"], ["configs", "short"])
LATIN = "en_US.ISO-8859-1"


def start(*arguments: object, stdout: int, stderr: int, **environment: str | None) -> "subprocess.Popen[bytes]":
    """`alignkd` with the environment changed as given; None removes a variable."""
    merged = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    command = [sys.executable, "-m", "alignkd.pipeline.cli", *map(os.fsencode, map(str, arguments))]
    kept = {name: value for name, value in merged.items() if value is not None}
    return subprocess.Popen(command, stdout=stdout, stderr=stderr, env=kept)


def finish(*arguments: object, **environment: str | None) -> tuple[int, str, str]:
    process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment)
    out, err = process.communicate(timeout=600)
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """A pipe whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_ends_early_is_no_error(arguments: list[str], closed_pipe: int) -> None:
    process = start(*arguments, stdout=closed_pipe, stderr=subprocess.PIPE)
    assert process.communicate(timeout=600)[1] == b""
    assert process.returncode == 128 + 13


@pytest.mark.parametrize("arguments", [["--help"], ["configs", "--json"]], ids=" ".join)
def test_a_full_stdout_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(*arguments, stdout=full.fileno(), stderr=subprocess.PIPE)
    message = process.communicate(timeout=600)[1].decode()
    assert process.returncode == 1
    assert message.startswith("alignkd: output: No space left on device; free some space")
    assert message.count("\n") == 1


def test_closed_streams_and_a_stderr_that_nobody_reads(closed_pipe: int) -> None:
    command = f"{sys.executable} -m alignkd.pipeline.cli configs >&-"
    done = subprocess.run(command, shell=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert (done.returncode, done.stderr) == (0, b"")
    process = start("shards", "ls", "/nowhere", stdout=subprocess.PIPE, stderr=closed_pipe)
    assert process.communicate(timeout=600)[0] == b"" and process.returncode == 1


@pytest.fixture
def latin(tmp_path: Path) -> dict[str, str]:
    """Environment of a locale whose encoding is ISO-8859-1, as LANG=en_US is on many clusters."""
    made = subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / LATIN], capture_output=True)
    if made.returncode > 1 or not (tmp_path / LATIN).is_dir():
        pytest.skip(f"localedef cannot make {LATIN} here: {made.stderr.decode()[:200]}")
    return {"LOCPATH": str(tmp_path), "LC_ALL": LATIN}


def test_names_and_texts_beyond_a_latin_1_locale(
    latin: dict[str, str], tmp_path: Path, write_small_store: Callable[[Path], Path]
) -> None:
    """Arguments survive the new start in UTF-8 mode, and so do files of such names."""
    out = tmp_path / "нет 日本.yaml"
    code, shown, error = finish("configs", "short", "--out", out, **latin)
    assert (code, error) == (0, "") and "нет 日本.yaml" in shown and out.is_file()
    code, shown, error = finish("shards", "ls", tmp_path / "нет", **latin)
    assert code == 1 and "нет" in error and error.count("\n") == 1
    store = write_small_store(tmp_path / "да" / "store")
    code, shown, error = finish("shards", "ls", store, "--json", **latin)
    assert (code, error) == (0, "") and json.loads(shown)["store"] == str(store)
    # the user's own choice is kept: names are read as the locale has them, and nothing fails
    code, shown, error = finish("shards", "ls", store, "--json", PYTHONUTF8="0", **latin)
    assert (code, error) == (0, "") and json.loads(shown)["store"] == str(store).encode().decode("latin-1")


@pytest.mark.parametrize("name", ["é нет", "\udcff"])
def test_no_stream_is_too_narrow_for_a_name(tmp_path: Path, name: str) -> None:
    """Without the new start, because the user decides (PYTHONUTF8=0), or a name is not even UTF-8."""
    target = tmp_path / f"{name}.yaml"
    for encoding in ("ascii", "latin-1", "utf-8"):
        target.unlink(missing_ok=True)
        process = start(
            *("configs", "short", "--out", target),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            PYTHONIOENCODING=encoding,
        )
        shown, error = process.communicate(timeout=600)
        assert process.returncode == 0 and target.is_file(), error
        assert b"wrote" in shown and b"Traceback" not in error


def test_a_user_without_home_is_told_once_where_caches_are(tmp_path: Path) -> None:
    """The user database is asked in-process only; here HOME is absent and the user unknown to it."""
    code = """
import pwd, sys
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
sys.argv = ["alignkd", "configs"]
from alignkd.pipeline.cli import main
try:
    main()
finally:
    import os
    print(os.environ["XDG_CACHE_HOME"], os.environ["MPLCONFIGDIR"], file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    folder = tmp_path / f"alignkd-cache-{os.getuid()}"
    warning, set_to = done.stderr.splitlines()
    assert warning.startswith(f"alignkd: user {os.getuid()} has no home folder: caches are in {folder}; set HOME")
    assert set_to == f"{folder} {folder}" and done.returncode == 0


def test_a_log_that_nobody_reads_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from alignkd.pipeline.console.printing import log_to_stderr

    def gone(*arguments: object, **options: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    log_to_stderr("alignkd-test")
    monkeypatch.setattr("click.echo", gone)
    logging.getLogger("alignkd-test").info("step 4 of 4")


def test_a_pipe_to_another_process_is_not_taken_for_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    from alignkd.pipeline.console.errors import clean_errors

    @clean_errors
    def command() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    ask: Callable[[], None] = command
    with pytest.raises(SystemExit) as end:
        ask()
    assert end.value.code == 1 and "Broken pipe; the process at the other end has ended" in capsys.readouterr().err
