"""One version, a changelog by release, and the table of extras: what users read agrees with pyproject.toml."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.version import Version

import alignkd
from alignkd.pipeline.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def test_the_version_is_in_one_place() -> None:
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    module, _, name = PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    source = (ROOT / "src" / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    written = re.findall(rf'^{name} = "(.*)"$', source, re.MULTILINE)
    assert written == [alignkd.__version__]
    assert str(Version(alignkd.__version__)) == alignkd.__version__
    assert CliRunner().invoke(main, ["--version"]).output == f"alignkd, version {alignkd.__version__}\n"


def test_the_changelog_has_a_heading_for_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    releases = [
        re.fullmatch(r"(\S+) \((\d{4}-\d\d-\d\d)\)", heading) for heading in headings if heading != "Unreleased"
    ]
    assert all(releases), headings
    versions = [Version(release[1]) for release in releases if release]
    days = [date.fromisoformat(release[2]) for release in releases if release]
    assert versions == sorted(set(versions), reverse=True) and days == sorted(days, reverse=True)
    own = Version(alignkd.__version__)
    if headings[0] == "Unreleased":
        # the next release has a new version, which the section names
        assert own not in versions and f"The next release is {own}" in text.split("\n## ")[1]
    else:
        assert "Unreleased" not in headings and versions[0] == own


def rows() -> dict[str, tuple[set[str], str]]:
    """Extra -> its packages and what it is for, by the table of docs/install.md."""
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return {name.strip("`"): (set(packages.split(", ")), purpose) for name, packages, purpose, _ in cells[1:]}


def test_the_table_of_extras_is_that_of_the_project() -> None:
    packages = {
        extra: {Requirement(line).name for line in lines if not line.startswith("alignkd[")}
        for extra, lines in EXTRAS.items()
    }
    assert {extra: listed for extra, (listed, _) in rows().items()} == packages


def of_development() -> set[str]:
    """The extras that `dev` brings."""
    return next(Requirement(line) for line in EXTRAS["dev"] if line.startswith("alignkd[")).extras


def test_the_development_extra_brings_the_others() -> None:
    left_out = EXTRAS.keys() - of_development() - {"dev"}
    said = re.search("brings every extra above but (.*)", rows()["dev"][1])
    assert said and set(re.findall("`(.*?)`", said[1])) == left_out


@pytest.mark.parametrize("extra", sorted({*of_development(), "dev"}))
def test_constraints_pin_versions_that_an_extra_allows(extra: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    for wanted in map(Requirement, EXTRAS[extra]):
        name = wanted.name.lower().replace("_", "-")
        assert name == "alignkd" or wanted.specifier.contains(pinned[name]), wanted


def test_the_tests_that_security_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) >= 15
    missing = [
        (file, name) for file, name in named if f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert not missing
