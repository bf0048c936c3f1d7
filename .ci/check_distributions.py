"""What is in the source distribution, and that it builds the same wheel as the checkout.

Usage: python check_distributions.py SDIST WHEEL WHEEL_OF_SDIST CHECKOUT
"""

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

from check_installed import ROOMS

# what setuptools adds
ADDED = re.compile(r"PKG-INFO|setup\.cfg|src/alignkd\.egg-info/.*")


def main(sdist: Path, wheel: Path, of_sdist: Path, checkout: Path) -> None:
    """Assert that the tar has the files and links of git, and that both wheels have the same bytes."""
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive if not member.isdir()}
    links = {name: member.linkname for name, member in members.items() if member.issym()}
    assert links == {room: f"src/alignkd/{room}" for room in ROOMS}, links
    packed = {top(name) for name in members if name not in links and not ADDED.fullmatch(name)}
    assert packed == known(checkout), f"differs from the checkout: {sorted(packed ^ known(checkout))}"
    assert wheel.name == of_sdist.name and contents(wheel) == contents(of_sdist), "the wheels differ"
    print(f"sdist: {len(packed)} files, builds the same wheel as the checkout")


def top(name: str) -> str:
    """The path in the checkout: the source distribution has the folders in the package, and the links at the top."""
    inner = name.removeprefix("src/alignkd/")
    return inner if inner.partition("/")[0] in ROOMS else name


def known(checkout: Path) -> set[str]:
    """Every file that git knows, without the links in the package."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and not (checkout / name).is_symlink()}


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
