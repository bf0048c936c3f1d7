"""What pyproject.toml cannot say: the links between the folders, in a checkout and in a source distribution.

In a checkout, src/alignkd holds links to the folders of the project. git with core.symlinks=false, and programs that
unpack zip archives, write these as text files; a wheel built from these would lack every module, so the build stops.

In a source distribution, src/alignkd holds the folders themselves, and the links lead the other way: a build needs no
links, and tests find every path that they find in a checkout.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
PACKAGE = ROOT / "src" / "alignkd"

for link in sorted(PACKAGE.iterdir()):
    if link.is_file() and not link.suffix:
        raise SystemExit(
            f"{link}: is a text file, expected a link to a folder; clone with `git clone -c core.symlinks=true`, or "
            "take the tar.gz archive in place of the zip archive"
        )


class SourceDistribution(sdist):
    """Adds a link at the top for each folder of the package that has its place there."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        for folder in PACKAGE.iterdir():
            top = ROOT / folder.name
            if folder.is_dir() and top.exists() and top.samefile(folder):
                (Path(base_dir) / folder.name).symlink_to(f"src/alignkd/{folder.name}")


setup(cmdclass={"sdist": SourceDistribution})
