"""Pictures of commands: PNG files that record which command drew them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from alignkd.disk.whole_file import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# the commands that draw
DATA_STATS = "alignkd data stats"
SHARDS_SHOW = "alignkd shards show"
REPORT = "alignkd report"
LAYERS = "alignkd layers"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD_BYTES = 4096


def save_picture(figure: "Figure", path: Path, command: str, *, dpi: int) -> None:
    """Write a PNG; it appears complete or not at all.

    Args:
        command: one of the names above, stored in the file; `is_drawn_by` looks for it.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path) as aside:
        figure.savefig(aside, dpi=dpi, format="png", metadata={"Software": command})


def is_drawn_by(command: str) -> Callable[[Path], bool]:
    """Make a test for pictures that `save_picture` wrote for `command`."""

    def is_drawn(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        # a tEXt chunk: keyword, zero, text
        return head.startswith(_SIGNATURE) and b"tEXtSoftware\0" + command.encode() in head

    return is_drawn
