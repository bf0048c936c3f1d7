"""Where caches are, also without a home folder."""

import os
from pathlib import Path

import pytest

from alignkd.disk.cache_home import cache_home, has_home
from alignkd.storage.remote.settings import settings_from_environment


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As `docker run --user 4242`: no HOME, nobody in the user database; temporary files go to the returned folder."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_home_has_caches_in_a_folder_of_its_own(no_home: Path) -> None:
    assert not has_home()
    folder = no_home / f"alignkd-cache-{os.getuid()}"
    assert cache_home() == cache_home() == folder and folder.stat().st_mode & 0o777 == 0o700
    assert settings_from_environment({}).cache_folder == folder / "alignkd"


def test_a_name_that_somebody_took_is_left_alone(no_home: Path) -> None:
    (no_home / "elsewhere").mkdir()
    (no_home / f"alignkd-cache-{os.getuid()}").symlink_to(no_home / "elsewhere")
    found = cache_home()
    assert found.parent == no_home and found.name not in ("elsewhere", f"alignkd-cache-{os.getuid()}")


def test_what_is_set_counts(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert has_home() and cache_home() == Path("/home/somebody/.cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_home() == Path("/cache")
