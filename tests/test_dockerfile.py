"""The Dockerfile copies what is there; `.ci/wheel_check` builds from what it copies."""

from pathlib import Path

import pytest
from docker_check import Ignored, copies, instructions

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SOURCES = [source for sources, _ in copies(DOCKERFILE) for source in sources]
IGNORED = Ignored((ROOT / ".dockerignore").read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_copied_exists_and_is_sent(source: str) -> None:
    assert (ROOT / source).exists() and not IGNORED(source)


def test_every_link_of_the_package_is_copied() -> None:
    assert "src" in SOURCES
    assert {link.name for link in (ROOT / "src" / "alignkd").iterdir() if link.is_dir() and link.name[0] != "_"} <= {
        *SOURCES
    }


def test_what_is_not_copied_is_not_sent() -> None:
    for path in (".git/config", "tests/conftest.py", "docs/pictures/results.png", "demo-out/report.md", "run.yaml"):
        assert IGNORED(path), path
    for path in ("storage/__pycache__/errors.pyc", "src/alignkd.egg-info/PKG-INFO"):
        assert IGNORED(path), path
    assert not IGNORED("storage/layouts/zarr/reader.py") and not IGNORED("src/alignkd/storage")


def test_the_image_has_no_privileges_and_exact_versions() -> None:
    last = instructions("FROM " + DOCKERFILE.rpartition("\nFROM ")[2])
    assert [words for name, words in last if name == "USER"] == ["1000"]
    assert [words for name, words in last if name == "ENTRYPOINT"] == ['["alignkd"]']
    installs = [words for name, words in instructions(DOCKERFILE) if "pip install" in words]
    assert installs and all("-c constraints.txt" in words and "--no-cache-dir" in words for words in installs)
