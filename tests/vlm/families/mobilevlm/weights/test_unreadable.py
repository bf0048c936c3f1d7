"""A file that cannot be opened is not called broken: the system's reason and its step, whoever reads."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignkd.storage.errors import StoreError
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.read.lm_head import LmHead
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Head
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.families.mobilevlm.inputs.tokenizer_rules import read_rules
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.stem.file import read_stem_info
from alignkd.vlm.stem.teacher_head import head_bytes, read_head
from alignkd.vlm.weights.files import iter_weights, read_weights, weight_shapes

NOBODY = 65534


@pytest.fixture
def folder(golden: Path) -> Iterator[Path]:
    """A copy of a checkpoint with a stem's and a head's names in it, in a folder that every user may enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        shutil.copytree(golden / "student", Path(place) / "student")
        yield Path(place) / "student"


@contextmanager
def another_user() -> Iterator[None]:
    """Root may read everything; nobody may not. Other users need no change."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def read_lm_head(path: Path) -> object:
    return read_head(path, vocab_size=1, hidden_size=1)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("model.safetensors", lambda path: read_weights(path.parent)),
    "shapes": ("model.safetensors", weight_shapes),
    "pickle": ("pytorch_model.bin", lambda path: list(iter_weights(path))),
    "stem": ("stem.safetensors", read_stem_info),
    "head": ("lm_head.safetensors", read_lm_head),
    "config": ("config.json", lambda path: load_preparation(path.parent, template="v1")),
    "tokenizer": ("tokenizer.model", LegacyLlamaTokenizer),
    "tokenizer's rules": ("tokenizer_config.json", lambda path: read_rules(path.parent)),
    "index": ("model.safetensors.index.json", lambda path: read_weights(path.parent)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_permission_is_named_as_such(folder: Path, golden: Path, reader: str) -> None:
    load_preparation(folder, template="v1", vision_config=golden / "clip")  # imports what is imported late
    name, read = READERS[reader]
    file = folder / name
    if not file.exists():
        file.write_bytes(head_bytes(Head(weight_VD=next(iter(read_weights(folder).values())))))
    file.chmod(0)
    with another_user(), pytest.raises(InputError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "Permission denied" in message and "ask for it" in message
    assert "broken" not in message and "download" not in message and "No such file" not in message


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (OSError(5, "Input/output error"), "see the system's log"),
        (OSError(116, "Stale file handle"), "file server did not answer"),
        (OSError(24, "Too many open files"), "ulimit -n"),
    ],
)
def test_other_causes_have_their_own_step(
    folder: Path, golden: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, step: str
) -> None:
    def fails(path: Path, *arguments: object) -> None:
        raise OSError(error.errno, error.strerror, str(path))

    monkeypatch.setattr("alignkd.vlm.weights.tensor_file.check_readable", fails)
    monkeypatch.setattr("alignkd.vlm.weights.files.check_readable", fails)
    for read in (lambda: load_model(folder, vision_config=golden / "clip"), lambda: read_stem_info(folder / "stem")):
        with pytest.raises(InputError, match=f"{error.strerror}.*{step}"):
            read()


def test_a_missing_file_and_a_folder_are_named(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"absent: cannot be read as a stem \(No such file or directory\); check the path"
    ):
        read_stem_info(folder / "absent")
    with pytest.raises(InputError, match=r"student: cannot be read as a stem \(Is a directory\); it is a folder"):
        read_stem_info(folder)


def test_a_store_without_permission_is_not_to_be_deleted(folder: Path, make_lm_head: Callable[[Path], object]) -> None:
    for name in ("chunk", "manifest.json"):
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0)
    files = LocalFiles(folder)
    for read in (
        lambda: files.open("chunk", "shard 0"),
        lambda: files.read("manifest.json", 10),
        lambda: files.fetch("chunk", "0" * 64),
        lambda: make_lm_head(folder / "chunk"),
    ):
        with another_user(), pytest.raises(StoreError, match="Permission denied; this user lacks the permission"):
            read()
    with pytest.raises(StoreError, match="No such file or directory; restore the shard from a copy"):
        files.open("absent")


@pytest.fixture
def make_lm_head() -> Callable[[Path], object]:
    """make_lm_head(path): as `alignkd shards show` opens a store's lm_head."""
    from types import SimpleNamespace

    shapes = SimpleNamespace(vocab_size=1, hidden_size=1)
    return lambda path: LmHead(path, SimpleNamespace(shapes=shapes))  # type: ignore[arg-type]
