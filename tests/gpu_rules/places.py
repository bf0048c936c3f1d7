"""Where in the project's code an operation was asked for."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

HERE = Path(__file__).parent
ROOT = HERE.parents[1] / "src" / "alignkd"
ROOMS = tuple(f"{ROOT / room}{os.sep}" for room in ("vlm", "storage", "teacher_dump", "student_train", "pipeline"))
LIBRARIES = f"site-packages{os.sep}"
MACHINERY = (str(HERE), f"{LIBRARIES}torch{os.sep}")
OUTSIDE = "outside"


@dataclass(frozen=True)
class Place:
    """A function of the project and, in `via`, the library function it called, if one; `line` is the project's.

    A comprehension or lambda counts as the function around it, as Python 3.12 has it. `file` is `OUTSIDE` where no
    function of the project is on the stack, as in the backward pass of a built-in operation: autograd runs it, and
    the stack shows nothing of the forward pass.
    """

    file: str
    function: str
    via: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}" + (f" via {self.via}" if self.via else "")


def current_place() -> Place:
    """The innermost function of the project that is being executed in this thread."""
    frame: FrameType | None = sys._getframe(1)
    via, line = "", 0
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOMS) and not frame.f_code.co_name.startswith("<"):
            return Place(str(Path(name).relative_to(ROOT)), frame.f_code.co_name, via, line or frame.f_lineno)
        if name.startswith(ROOMS) and not line:
            line = frame.f_lineno
        if not via and not line and LIBRARIES in name and not any(part in name for part in MACHINERY):
            via = f"{name.rpartition(LIBRARIES)[2]} {frame.f_code.co_name}"
        frame = frame.f_back
    return Place(OUTSIDE, "", via, 0)


def asked_by_the_project() -> bool:
    """Whether the caller's caller is a function of the project."""
    return sys._getframe(2).f_code.co_filename.startswith(ROOMS)
