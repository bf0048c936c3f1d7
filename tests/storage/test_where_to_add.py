"""The lists "a codec" and "a layout" of ARCHITECTURE.md, "Where to add", followed to the letter in a copy of the code.

`LISTS` is those lists: a file to write and the lines to add. A step that is left out is an error at import which names
the file; with all steps the toys are dumped, stored, read, verified, converted and predicted by the real code.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from prepared_processes import PreparedProcesses

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).parent / "where_to_add"
ROOMS = ("disk", "storage", "vlm", "evaluation", "teacher_dump", "student_train", "pipeline")


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


Python = Callable[..., tuple[int, str, str]]
# this copy and no other: the process has imported libraries, but nothing of alignkd
IN_THE_COPY = """
import runpy, sys
sys.path[:0] = [sys.argv[1]]
if sys.argv[2] == "-c":
    exec(sys.argv[3])
elif sys.argv[2] == "-m":
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def code(tmp_path: Path, prepared_libraries: PreparedProcesses, patience: float) -> Callable[[Sequence[Line]], Python]:
    """`code(lines)`: `python` of a copy of the code with the toys' files and these lines, which gives the exit code,
    output and errors."""

    def make(lines: Sequence[Line]) -> Python:
        package = tmp_path / "code" / "alignkd"
        package.mkdir(parents=True)
        for file in (ROOT / "src" / "alignkd").glob("*.py"):
            shutil.copy(file, package)
        for room in ROOMS:
            shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        for target, toy in [file for files, _ in LISTS.values() for file in files]:
            (package / target).parent.mkdir(exist_ok=True)
            (package / target).write_text((TOYS / toy).read_text() if toy else "")
        for line in lines:
            add(package, line)

        def python(*arguments: object) -> tuple[int, str, str]:
            copied = str(package.parent)
            process = prepared_libraries.start("-c", IN_THE_COPY, copied, *arguments, PYTHONPATH=copied)
            output, errors = process.communicate(patience)
            return process.wait(patience), output, errors

        return python

    return make


def test_the_toys_work_by_following_the_lists(
    code: Callable[[Sequence[Line]], Python], small_store: Path, tmp_path: Path
) -> None:
    python = code([line for _, lines in LISTS.values() for line in lines])
    exit_code, output, errors = python(TOYS / "check.py", small_store, tmp_path)
    assert exit_code == 0 and output.endswith("all done\n"), errors

    page = Path(shutil.copy(ROOT / "docs" / "configuration.md", tmp_path))
    exit_code, _, errors = python("-m", "alignkd.pipeline.config.reference", page)
    assert exit_code == 0, errors
    assert "`milli`" in page.read_text(encoding="utf-8") and "`npys`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("left_out", "module"), [(ENCODER, "teacher_dump.dump"), (DECODER, "student_train.trainer")])
def test_a_codec_without_its_torch_side_is_an_error_at_import(
    code: Callable[[Sequence[Line]], Python], left_out: Line, module: str
) -> None:
    python = code([line for line in (*IN_CODECS, ENCODER, DECODER) if line != left_out])
    exit_code, _, errors = python("-c", f"import alignkd.{module}")
    assert exit_code == 1
    table = left_out.after.partition(":")[0]
    assert errors.splitlines()[-1] == (
        f"ImportError: codec 'milli' of storage/codecs is missing in {table} of {left_out.file}; add it there"
    )
