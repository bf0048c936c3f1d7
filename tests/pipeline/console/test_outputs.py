"""Options that name a file or folder to write: inputs and strangers' files stay, own earlier ones are replaced."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from alignkd.pipeline.cli import main
from alignkd.pipeline.console.outputs import claim_file, claim_folder, never
from alignkd.vlm.errors import InputError

WriteConfig = Callable[..., Path]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*arguments: object, why: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1 and why in result.stderr, result.output
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def place(tmp_path: Path, golden: Path, golden_images: Path, write_small_store: Callable[[Path], Path]) -> Path:
    """A folder with data, images, models and a store, entered."""
    shutil.copytree(golden_images, tmp_path / "images")
    shutil.copy(golden / "v1.json", tmp_path / "data.json")
    shutil.copytree(golden / "student", tmp_path / "teacher")
    write_small_store(tmp_path / "store")
    return tmp_path


@pytest.fixture
def stats(place: Path, golden: Path) -> tuple[object, ...]:
    """`alignkd data stats` over the data of `place`."""
    models = ("--checkpoint", place / "teacher", "--vision-config", golden / "clip", "--workers", 1)
    return ("data", "stats", place / "data.json", "--images", place / "images", *models)


def weights(place: Path) -> Path:
    return next((place / "teacher").glob("*.safetensors"))


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_command_reads_is_never_written(
    place: Path, stats: tuple[object, ...], write_config: WriteConfig
) -> None:
    (place / "run").mkdir()
    (place / "run" / "metrics.jsonl").write_text('{"step": 1, "samples_seen": 1, "loss": 1.0}\n')
    config = write_config(teacher={"checkpoint": str(place / "teacher")})
    (place / "link.json").symlink_to("data.json")
    os.link(place / "data.json", place / "hard.json")
    store, before = place / "store", everything(place)
    for out in ("data.json", "link.json", "hard.json", "images/coffee.png", "teacher/config.json"):
        refused(*stats, "--force", "--list", place / out, why="is an input of the command")
        refused(*stats, "--force", "--png", place / out, why="is an input of the command")
    refused(*stats, "--list", place / "new", "--png", place / "new", why="is an input of the command")
    for out in ("manifest.json", "new.safetensors"):
        refused("shards", "export", store, "--index", 0, "--force", "--out", store / out, why="lies in the store")
    show = ("shards", "show", store, "--index", 0, "--images", place / "images", "--force", "--png")
    refused(*show, place / "images" / "coffee.png", why="is an input of the command")
    refused(*show, store / "new.png", why="lies in the store")
    for out in (config, weights(place)):
        refused("stem", "extract", config, "--force", "--out", out, why="is an input of the command")
    refused("report", place / "run", "--force", "--out", place / "run", why="is an input of the command")
    assert everything(place) == before


def test_a_strangers_file_is_replaced_by_force_alone(
    place: Path, stats: tuple[object, ...], write_config: WriteConfig
) -> None:
    stranger = place / "stranger"
    export = ("shards", "export", place / "store", "--index", 0, "--out", stranger)
    commands: tuple[tuple[object, ...], ...] = (
        (*stats, "--list", stranger),
        (*stats, "--png", stranger),
        export,
        ("shards", "show", place / "store", "--index", 0, "--png", stranger),
        ("stem", "extract", write_config(), "--out", stranger),
        ("configs", "short", "--out", stranger),
    )
    for content in (b"{}\n", b"\x89PNG\r\n\x1a\n of somebody", weights(place).read_bytes()):
        stranger.write_bytes(content)
        for command in commands:
            refused(*command, why="already exists")
        assert stranger.read_bytes() == content
    assert run(*export, "--force").exit_code == 0 and stranger.read_bytes() != content


def test_the_same_command_twice_replaces_its_own(
    place: Path, stats: tuple[object, ...], write_config: WriteConfig
) -> None:
    data = place / "data.json"
    data.write_text(data.read_text(encoding="utf-8").replace("coffee.png", "none.png"), encoding="utf-8")
    (place / "run").mkdir()
    (place / "run" / "metrics.jsonl").write_text('{"step": 1, "samples_seen": 1, "loss": 1.0}\n')
    # beside the images, as where the image folder is the working directory
    listing, png = place / "images" / "dropped.jsonl", place / "images" / "lengths.png"
    (place / "empty").touch()
    for _ in range(2):
        assert run(*stats, "--no-decode", "--list", listing, "--png", png).exit_code == 0
        for out in (place / "one.safetensors", place / "empty"):
            assert run("shards", "export", place / "store", "--index", 0, "--out", out).exit_code == 0
        assert run("stem", "extract", write_config(), "--out", place / "new" / "stem.safetensors").exit_code == 0
        assert run("report", place / "run", "--out", place / "page").exit_code == 0
    with Image.open(png) as picture:
        assert picture.info["Software"] == "alignkd data stats"
    assert "none.png" in listing.read_text(encoding="utf-8")
    # another command's picture is a stranger's
    refused("shards", "show", place / "store", "--index", 0, "--png", png, why="already exists")
    (place / "page" / "curves.png").write_bytes(b"mine")
    refused("report", place / "run", "--out", place / "page", why="curves.png: already exists")
    refused("report", place / "run", "--out", place / "images", why="is not empty and was not made by this command")
    assert run("report", place / "run", "--out", place / "images", "--force").exit_code == 0


def test_a_place_that_takes_no_file_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        claim_file("--out", tmp_path / "file" / "new" / "x", never, reads=(), force=True)
    with pytest.raises(NotADirectoryError):
        claim_folder("--out", tmp_path / "file", never, reads=(), force=True)
    with pytest.raises(IsADirectoryError):
        claim_file("--out", tmp_path, never, reads=(), force=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        claim_file("--out", tmp_path / "pipe", never, reads=(), force=True)
    with pytest.raises(InputError, match="not empty"):
        claim_folder("--out", tmp_path, never, reads=(), force=None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError):
        claim_file("--out", tmp_path / "new" / "x", never, reads=(), force=False)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def for_the_group() -> Iterator[None]:
    """A umask that no default equals: files 664, folders 775."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_every_output_has_the_mode_of_the_umask(
    place: Path, stats: tuple[object, ...], write_config: WriteConfig, for_the_group: None
) -> None:
    before = set(place.rglob("*"))
    config = write_config(store={"logits": {"kind": "hidden"}}, train={"steps": 1, "checkpoint_every": 1})
    for arguments in (
        ("dump", config),
        ("train", config),
        ("stem", "extract", config, "--out", place / "stem.safetensors"),
        ("shards", "export", place / "store", "--index", 0, "--out", place / "one.safetensors"),
        (*stats, "--list", place / "dropped.jsonl", "--png", place / "lengths.png"),
        ("report", place / "out", "--out", place / "page"),
        ("configs", "short", "--out", place / "short.yaml"),
    ):
        if arguments[0] == "dump":
            shutil.rmtree(place / "store")
        result = run(*arguments)
        assert result.exit_code == 0, result.output
    made = sorted(set(place.rglob("*")) - before)
    assert {"model.safetensors", "adapters.safetensors", "exp_avg-000.safetensors", "lm_head.safetensors"} <= {
        path.name for path in made
    }
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert not {path: oct(mode) for path, mode in modes.items() if mode != (0o775 if path.is_dir() else 0o664)}
