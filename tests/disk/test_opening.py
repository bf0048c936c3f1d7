"""A pipe, a socket or a device under the name of an input is refused at once, wherever an input is opened by name."""

import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkd.disk.opening import open_regular
from alignkd.pipeline.config.run_config import read_yaml
from alignkd.pipeline.models.ask import Question, ask
from alignkd.storage.errors import StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.places import load_manifest
from alignkd.student_train.objective.adapters import Adapters
from alignkd.vlm.data.images import open_image, read_image_bytes
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.inputs.tokenizer_rules import read_rules
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation
from alignkd.vlm.stem.file import read_stem_info

SAFETY_SECONDS = 60


def outcome(action: Callable[[], object], pipe: Path) -> BaseException | object:
    """What `action` returned or raised; a failure if it waits on the pipe, which is let go afterwards."""
    found: list[BaseException | object] = []

    def work() -> None:
        try:
            found.append(action())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SAFETY_SECONDS)
    waited = thread.is_alive()
    if waited:
        os.close(os.open(pipe, os.O_RDWR))
    assert not waited, "waits on a pipe"
    return found[0]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_each_kind_is_named(pipe: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "socket"))
        kinds = {pipe: "but a pipe", Path("/dev/zero"): "but a device", tmp_path / "socket": "but a socket"}
        (tmp_path / "link").symlink_to(pipe)
        for path, said in (kinds | {tmp_path / "link": "but a pipe"}).items():
            error = outcome(lambda path=path: open_regular(path), pipe)  # type: ignore[misc]
            assert isinstance(error, OSError) and error.strerror == f"not a regular file, {said}"
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_nothing_stays_open_of_what_is_refused(pipe: Path) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    for path in (pipe, pipe.parent, Path("/dev/null")):
        with pytest.raises(OSError, match=r"regular|directory"):
            open_regular(path)
    assert list(Path("/proc/self/fd").iterdir()) == before


def test_every_input_that_is_opened_by_name(pipe: Path, tmp_path: Path, golden: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(golden / "student", checkpoint)
    (checkpoint / "tokenizer_config.json").unlink(missing_ok=True)
    os.mkfifo(checkpoint / "tokenizer_config.json")
    os.mkfifo(tmp_path / "manifest.json")
    question = Question(checkpoint=golden / "student", text="hi", images=(pipe,), vision_config=golden / "clip")
    adapters = Adapters(heads=(1, 1), hidden_sizes=(1, 1))
    actions: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: read_image_bytes(tmp_path, "pipe"), InputError),
        (lambda: open_image(tmp_path, "pipe"), InputError),
        (lambda: load_samples(pipe), InputError),
        (lambda: read_json(pipe), InputError),
        (lambda: ask(question), InputError),
        (lambda: read_rules(checkpoint), InputError),
        (lambda: load_preparation(checkpoint, template="v1", vision_config=pipe), InputError),
        # a device: safetensors holds the interpreter's lock while it opens, so a pipe would stop the whole test
        (lambda: read_stem_info(Path("/dev/null")), InputError),
        (lambda: adapters.load(Path("/dev/null")), ValueError),
        (lambda: load_manifest(tmp_path), StoreError),
        (lambda: LocalFiles(tmp_path).open("pipe"), StoreError),
        (lambda: file_sha256(pipe), OSError),
    ]
    for number, (action, kind) in enumerate(actions):
        error = outcome(action, pipe)
        assert isinstance(error, kind) and "not a regular file" in str(error), (number, error)
        assert "\n" not in str(error)


def test_a_device_is_refused_where_it_would_be_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"a\.png: image cannot be read \(not a regular file, but a device\)"):
        read_image_bytes(tmp_path, "a.png")
    with pytest.raises(
        InputError,
        match=r"cannot be read \(not a regular file, but a device\); it is neither",
    ):
        read_yaml(Path("/dev/zero"))


def test_a_configuration_may_come_through_a_pipe(pipe: Path) -> None:
    """`alignkd dump <(cat run.yaml)`."""
    text = "data: {conversations: é.json}\n"
    writer = threading.Thread(target=lambda: pipe.write_text(text, encoding="utf-8"), daemon=True)
    writer.start()
    assert read_yaml(pipe) == {"data": {"conversations": "é.json"}}
    writer.join()
