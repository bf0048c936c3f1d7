"""Stops a build from a checkout without links; everything else is in pyproject.toml.

git with core.symlinks=false, and programs that unpack zip archives, write the links in src/alignkd as text files. A
wheel built from these would lack every module.
"""

from pathlib import Path

from setuptools import setup

for link in sorted((Path(__file__).parent / "src" / "alignkd").iterdir()):
    if link.is_file() and not link.suffix:
        raise SystemExit(
            f"{link}: is a text file, expected a link to a folder; clone with `git clone -c core.symlinks=true`, or "
            "take the tar.gz archive in place of the zip archive"
        )
setup()
