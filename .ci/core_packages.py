"""A folder that stands for an environment in which the wheel is installed without extras.

It holds a link to every file or folder at the top of each distribution that the wheel needs, directly or not, and
nothing else of the environment that runs this file.

Usage: python core_packages.py WHEEL FOLDER
"""

import sys
from collections.abc import Iterator
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def main(wheel: Path, folder: Path) -> None:
    """Make the links."""
    folder.mkdir()
    for needed in closure(required(wheel)):
        for top in {file.parts[0] for file in needed.files or () if not file.parts[0].startswith((".", "_"))}:
            place = Path(str(needed.locate_file(top)))
            # folders of several distributions, such as google/, are linked once
            if place.exists() and not (folder / top).is_symlink():
                (folder / top).symlink_to(place)
    print(f"core: {len(list(folder.iterdir()))} links for the packages that the wheel needs without extras")


def required(wheel: Path) -> list[str]:
    """The requirements in the metadata of a wheel."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return [str(line) for line in message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])]


def closure(lines: list[str]) -> Iterator[Distribution]:
    """The installed distributions that the requirements without extras lead to, each once."""
    waiting, seen = [(line, frozenset[str]()) for line in lines], set[tuple[str, frozenset[str]]]()
    while waiting:
        line, extras = waiting.pop()
        requirement = Requirement(line)
        applies = [{"extra": extra} for extra in extras | {""}]
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in seen or (requirement.marker and not any(map(requirement.marker.evaluate, applies))):
            continue
        seen.add(key)
        found = distribution(requirement.name)
        waiting += [(further, key[1]) for further in found.requires or ()]
        yield found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
