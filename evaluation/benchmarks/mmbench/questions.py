"""The questions of MMBench: hint, question, options, and the image in base64."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignkd.evaluation.benchmarks.mmbench.cells import is_skipped
from alignkd.evaluation.benchmarks.mmbench.table import LETTERS, Row, read_rows
from alignkd.evaluation.folder import question_file
from alignkd.evaluation.question import Question
from alignkd.vlm.errors import InputError

_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
_MAX_NEW_TOKENS = 1024
# newer files give the index of another row with the same image instead of the image
_MAX_REFERENCE = 64


def read_questions(folder: Path) -> list[Question]:
    """The questions of a folder of MMBench; equal images share their bytes.

    Raises:
        InputError: as `read_rows`; an image is not base64.
    """
    rows, path = read_rows(folder, with_images=True), question_file(folder, "mmbench")
    images = _images(rows, path)
    return [_question(row, images[row.index]) for row in rows]


def _question(row: Row, image: bytes) -> Question:
    options = _options(row)
    hint = row.cell("hint")
    stem = row.cells["question"] if is_skipped(hint) else f"{hint}\n{row.cells['question']}"
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Question(
        id=row.index,
        turn=stem + listed + _SUFFIX,
        prompt=stem + listed,
        image=image,
        max_new_tokens=_MAX_NEW_TOKENS,
        fields={"round_id": 0, "options": options, "option_char": list(LETTERS[: len(options)])},
    )


def _options(row: Row) -> list[str]:
    """The options up to the first that is missing; the original lists none behind it."""
    options = []
    for letter in LETTERS:
        cell = row.cell(letter)
        if is_skipped(cell):
            break
        options.append(cell)
    return options


def _images(rows: Sequence[Row], path: Path) -> dict[int, bytes]:
    cells = {row.index: row.cells["image"] for row in rows}
    decoded: dict[str, bytes] = {}
    images = {}
    for index in cells:
        cell = _resolved(cells, index, path)
        if cell not in decoded:
            decoded[cell] = _decode(cell, index, path)
        images[index] = decoded[cell]
    return images


def _resolved(cells: Mapping[int, str], index: int, path: Path) -> str:
    """The image of a row, or of the row that it refers to."""
    cell = cells[index]
    if len(cell) > _MAX_REFERENCE:
        return cell
    other = cells.get(int(cell), "") if cell.isdecimal() else ""
    if len(other) <= _MAX_REFERENCE:
        raise InputError(
            f"{path}: row {index} has no image, and {cell!r} names no row with an image; copy the file again"
        )
    return other


def _decode(cell: str, index: int, path: Path) -> bytes:
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{path}: the image of row {index} is not base64; copy the file again") from None
