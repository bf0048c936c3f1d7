"""A checkout without links (git with core.symlinks=false, an unpacked zip archive) is refused with the next step."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MESSAGE = "is a text file, expected a link to a folder; clone with `git clone -c core.symlinks=true`"


def test_links_that_are_text_files_are_named(tmp_path: Path) -> None:
    package = tmp_path / "src" / "alignkd"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copy(ROOT / "src" / "alignkd" / "__init__.py", package)
    (package / "storage").write_text("../../storage", encoding="utf-8")
    for command in (["setup.py", "--name"], ["-c", "import sys; sys.path.insert(0, 'src'); import alignkd"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and MESSAGE in done.stderr.splitlines()[-1]
