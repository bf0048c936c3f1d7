"""Reading and listing start fast, and each heavy package is imported by one module."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import alignkd.storage

ROOM = Path(alignkd.storage.__file__).parent


@pytest.mark.parametrize(("package", "module"), [("zarr", "metadata.py"), ("google_crc32c", "checksum.py")])
def test_one_module_imports_it(package: str, module: str) -> None:
    pattern = re.compile(rf"^\s*(import|from) {package}\b", re.MULTILINE)
    assert [path.name for path in ROOM.rglob("*.py") if pattern.search(path.read_text())] == [module]


def test_looking_at_a_store_loads_neither_torch_nor_zarr(small_store: Path) -> None:
    code = (
        "import sys, pathlib; from alignkd.storage import *; path = pathlib.Path(sys.argv[1]); list_shards(path);"
        "StoreReader(path)[0]; assert verify_store(path, deep=True).ok;"
        "print([name for name in ('torch', 'zarr', 'transformers', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, small_store], capture_output=True, text=True, cwd=ROOM.parent)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_nothing_in_the_room_unpickles_or_evaluates() -> None:
    source = "\n".join(path.read_text() for path in ROOM.rglob("*.py"))
    assert not re.search(r"\b(pickle|marshal|eval|exec|allow_pickle|shelve)\b", source)
