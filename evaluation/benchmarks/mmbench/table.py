"""The table of MMBench: one row per question and rotation of its options, fields separated by tabs."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from alignkd.disk.opening import open_regular
from alignkd.evaluation.benchmarks.mmbench.cells import NO_TEXT, is_missing, through_xlsx
from alignkd.evaluation.folder import question_file
from alignkd.vlm.errors import InputError, one_line, unreadable

LETTERS = ("A", "B", "C", "D")
# rotation k of question i has the index k * ROTATION + i
ROTATION = 1_000_000
_NEEDED = ("index", "question", "A", "B", "image", "answer")
# an image in base64 is longer than the csv module's limit of 131,072 characters
_MAX_FIELD = 1 << 30
_MAX_DIGITS = 18
# a line after the last one, which is a row of its own unless a quoted field has no end
_END = "\0end of the table"


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        index: question and rotation, see `ROTATION`.
        cells: all other columns as they are written; missing columns are not in it.
    """

    index: int
    cells: Mapping[str, str]

    @property
    def group(self) -> int:
        """Index of the unrotated question."""
        return self.index % ROTATION

    @property
    def answer(self) -> str:
        """The expected letter."""
        return self.cells["answer"]

    def options(self) -> dict[str, str]:
        """The options by letter, without those that pandas or the xlsx file make missing."""
        cells = {letter: self.cell(letter) for letter in LETTERS}
        return {letter: cell for letter, cell in cells.items() if through_xlsx(cell) != NO_TEXT}

    def cell(self, column: str) -> str:
        """The text in a column, "" if it has none."""
        return self.cells.get(column, "")


def read_rows(folder: Path, *, with_images: bool) -> list[Row]:
    """The rows of the table in a folder of MMBench, in the order of the file.

    Args:
        with_images: whether the column `image` is kept, which is most of the file.

    Raises:
        InputError: the file is missing or unreadable, is not a table of MMBench with answers, or a row is malformed.
    """
    path = question_file(folder, "mmbench")
    rows = list(_rows(path, with_images))
    if not rows:
        raise InputError(f"{path}: no question; copy the file again")
    indices = {row.index for row in rows}
    if len(indices) < len(rows):
        raise InputError(f"{path}: {len(rows) - len(indices)} indices occur again; copy the file again")
    return rows


def _rows(path: Path, with_images: bool) -> Iterator[Row]:
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        # line ends inside quoted fields stay as they are
        with open_regular(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            table = csv.DictReader(chain(text, [_END]), delimiter="\t")
            _check_columns(path, table.fieldnames or ())
            first, has_end = (table.fieldnames or ("",))[0], False
            for cells in table:
                if has_end := cells[first] == _END:
                    break
                yield _row(cells, f"{path}: line {table.line_num}", with_images)
            if not has_end:  # pandas fails here; the csv module would take the rest of the file for one field
                raise InputError(f"{path}: a quotation mark that opens a field is not closed; copy the file again")
    except OSError as error:
        raise unreadable(path, error) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a table in UTF-8 ({one_line(error)}); copy the file again") from None
    finally:
        csv.field_size_limit(limit)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; MMBench dev is a table with tabs that has the answers, "
            "docs/evaluation.md names the file"
        )


def _row(cells: dict[str | None, str | None], place: str, with_images: bool) -> Row:
    index, answer = cells.get("index") or "", cells.get("answer") or ""
    if (
        None in cells
        or not index.isdecimal()
        or len(index) > _MAX_DIGITS
        or is_missing(answer)
        or is_missing(cells.get("question") or "")
    ):
        raise InputError(f"{place}: not a row of MMBench dev with index, question and answer; copy the file again")
    kept = {name: cell or "" for name, cell in cells.items() if name and (with_images or name != "image")}
    return Row(int(index), kept)
