"""Paths of a configuration: what is expanded, what is left alone, what is refused."""

import pytest

from vlm.settings import expanded


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
        ("${SCRATCH:-/tmp}/x", "has a '$' in '${SCRATCH:-/tmp}/x' that begins no name"),
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
