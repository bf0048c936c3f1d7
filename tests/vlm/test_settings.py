"""Paths of a configuration: what is expanded, what is left alone, what is refused."""

import re
from pathlib import Path

import pytest

from alignkd.storage.errors import StoreError
from alignkd.storage.places import load_manifest
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError
from alignkd.vlm.settings import expanded
from alignkd.vlm.stem.file import read_stem_info
from alignkd.vlm.weights.hub import resolve_checkpoint


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/of/me", "SCRATCH": "/scratch", "TILDE": "~/x", "EMPTY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOT_SET", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/of/me"),
        ("~/store", "/home/of/me/store"),
        ("~root/x", "/root/x"),
        ("$SCRATCH/store", "/scratch/store"),
        ("${SCRATCH}2/store", "/scratch2/store"),
        ("a/$SCRATCH", "a//scratch"),
        ("$TILDE/store", "/home/of/me/x/store"),
        ("s3://bucket$SCRATCH//x", "s3://bucket/scratch//x"),
        ("price$$", "price$"),
        ("org/name", "org/name"),
        ("org/name@v1.0", "org/name@v1.0"),
        ("a~/b", "a~/b"),
        ("./~", "./~"),
        ("../st öre/é", "../st öre/é"),
    ],
)
def test_expanded(text: str, path: str) -> None:
    assert expanded(text) == path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$NOT_SET/store", "the environment variable NOT_SET in '$NOT_SET/store' is not set; set it"),
        ("${NOT_SET}", "the environment variable NOT_SET"),
        ("$EMPTY/store", "the environment variable EMPTY in '$EMPTY/store' is empty"),
        ("${SCRATCH:-/tmp}/x", "has a '$' in '${SCRATCH:-/tmp}/x' that does not start a name"),
        ("a$", "$$ is a dollar sign"),
        ("~no-such-user/x", "the home folder '~no-such-user' in '~no-such-user/x' is not known"),
        ("", "an empty text"),
        ("  ", "an empty text"),
        ("a\nb", "has the character '\\n'"),
        ("a\0b", "has the character '\\x00'"),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        expanded(text)
    assert said in str(error.value)


def test_a_relative_path_that_leads_nowhere_is_shown_in_full_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = re.escape(f"(in full {tmp_path}/a/b)")
    with pytest.raises(InputError, match=rf"^a/b {full}: cannot be read"):
        open_data(DataSet(path=Path("a/b")))
    with pytest.raises(InputError, match=rf"^a/b {full}: cannot be read as a stem"):
        read_stem_info(Path("a/b"))
    with pytest.raises(InputError, match=rf"^\./a/b {full}: no such"):
        resolve_checkpoint("./a/b")
    with pytest.raises(InputError, match=re.escape(f"(tried {tmp_path}/a/b)")):
        resolve_checkpoint("a/b")
    with pytest.raises(StoreError, match=re.escape(f"a/manifest.json (in full {tmp_path}/a/manifest.json): No such")):
        load_manifest(Path("a"))
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/c: cannot be read")):
        open_data(DataSet(path=tmp_path / "c"))
