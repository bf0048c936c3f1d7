"""The lists "a codec" and "a layout" of ARCHITECTURE.md, "Where to add", followed to the letter in a copy of the code.

`LISTS` is those lists: a file to write and the lines to add. A step that is left out is an error at import which names
the file; with all steps the toys are dumped, stored, read, verified, converted and predicted by the real code.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).parent / "where_to_add"
ROOMS = ("disk", "storage", "vlm", "teacher_dump", "student_train", "pipeline")


@dataclass(frozen=True)
class Line:
    """A line to add to a file, before or after one that is there."""

    file: str
    text: str
    before: str = ""
    after: str = ""


CODEC_FILE = ("storage/codecs/milli.py", "milli.py")
IN_CODECS = (
    Line(
        "storage/codecs/__init__.py", "from alignkd.storage.codecs.milli import Milli\n", before="from alignkd.storage"
    ),
    Line("storage/codecs/__init__.py", "Milli(), ", after="codec.name: codec for codec in ("),
)
ENCODER = Line(
    "teacher_dump/targets/device_codecs.py",
    '    "milli": lambda values: {"": (values * 1000).round_().to(torch.int16)},\n',
    after="_ENCODERS: dict[str, Callable[[Tensor], Parts]] = {\n",
)
DECODER = Line(
    "student_train/data/decode.py",
    '    "milli": lambda parts: parts[""].float() / 1000,\n',
    after="DECODERS: dict[str, Callable[[Parts], Tensor]] = {\n",
)
LAYOUT_FILES = (("storage/layouts/npys/__init__.py", ""), ("storage/layouts/npys/backend.py", "npys.py"))
IN_REGISTRY = (
    Line(
        "storage/layouts/registry.py",
        "def _npys() -> Backend:\n    from alignkd.storage.layouts.npys.backend import NpysBackend\n\n"
        "    return NpysBackend()\n\n\n",
        before="_LAYOUTS: dict",
    ),
    Line("storage/layouts/registry.py", '"npys": _npys, ', after="_LAYOUTS: dict[str, Callable[[], Backend]] = {"),
)
LISTS = {
    "a codec": ([CODEC_FILE], (*IN_CODECS, ENCODER, DECODER)),
    "a layout": (LAYOUT_FILES, IN_REGISTRY),
}


def add(package: Path, line: Line) -> None:
    path = package / line.file
    text = path.read_text()
    place = text.index(line.before) if line.before else text.index(line.after) + len(line.after)
    path.write_text(text[:place] + line.text + text[place:])


@pytest.fixture
def code(tmp_path: Path) -> Callable[[Sequence[Line]], dict[str, str]]:
    """`code(lines)`: the environment of a copy of the code with the toys' files and these lines."""

    def make(lines: Sequence[Line]) -> dict[str, str]:
        package = tmp_path / "code" / "alignkd"
        package.mkdir(parents=True)
        shutil.copy(ROOT / "src" / "alignkd" / "__init__.py", package)
        for room in ROOMS:
            shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        for target, toy in [file for files, _ in LISTS.values() for file in files]:
            (package / target).parent.mkdir(exist_ok=True)
            (package / target).write_text((TOYS / toy).read_text() if toy else "")
        for line in lines:
            add(package, line)
        return {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}

    return make


def python(environment: dict[str, str], *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=environment["PYTHONPATH"])


def test_the_toys_work_by_following_the_lists(
    code: Callable[[Sequence[Line]], dict[str, str]], small_store: Path, tmp_path: Path
) -> None:
    environment = code([line for _, lines in LISTS.values() for line in lines])
    done = python(environment, TOYS / "check.py", small_store, tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("all done\n"), done.stderr

    page = Path(shutil.copy(ROOT / "docs" / "configuration.md", tmp_path))
    done = python(environment, "-m", "alignkd.pipeline.config.reference", page)
    assert done.returncode == 0, done.stderr
    assert "`milli`" in page.read_text(encoding="utf-8") and "`npys`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("left_out", "module"), [(ENCODER, "teacher_dump.dump"), (DECODER, "student_train.trainer")])
def test_a_codec_without_its_torch_side_is_an_error_at_import(
    code: Callable[[Sequence[Line]], dict[str, str]], left_out: Line, module: str
) -> None:
    environment = code([line for line in (*IN_CODECS, ENCODER, DECODER) if line != left_out])
    done = python(environment, "-c", f"import alignkd.{module}")
    assert done.returncode == 1
    table = left_out.after.partition(":")[0]
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: codec 'milli' of storage/codecs is missing in {table} of {left_out.file}; add it there"
    )
