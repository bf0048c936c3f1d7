"""Which format a file has, and its rows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from alignkd.teacher_dump.imported.formats.axolotl import IDS, axolotl_row, values_column
from alignkd.teacher_dump.imported.formats.distillkit import COMPRESSED, LEGACY, PLAIN, TOKENS, DistillKitFile
from alignkd.teacher_dump.imported.formats.parquet import ParquetRows, is_parquet
from alignkd.teacher_dump.imported.formats.polynomial import Compression
from alignkd.teacher_dump.imported.formats.vllm import is_vllm, vllm_row
from alignkd.teacher_dump.imported.row import ForeignRow, unusable_row
from alignkd.vlm.data.json.stream import JsonEntries
from alignkd.vlm.errors import InputError

FormatName = Literal["distillkit", "vllm", "axolotl"]
Alignment = Literal["token", "next"]
Match = Literal["id", "order", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """What is known of a format besides its bytes.

    Attributes:
        name: its name in options and manifests.
        knows_tail: whether its log-probabilities are normalised over the whole vocabulary.
        fixed_alignment: whether every file has the alignment that its reader gives.
        has_no_order: whether rows are in no particular order and have no id.
    """

    name: FormatName
    knows_tail: bool
    fixed_alignment: bool
    has_no_order: bool = False


FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        Format(name="distillkit", knows_tail=False, fixed_alignment=True, has_no_order=True),
        Format(name="vllm", knows_tail=True, fixed_alignment=True),
        Format(name="axolotl", knows_tail=False, fixed_alignment=False),
    )
}


class FileRows(Protocol):
    """The rows of one file."""

    def __len__(self) -> int:
        """Number of rows."""

    def rows(self) -> Iterator[ForeignRow]:
        """Every row in the order of the file.

        Raises:
            InputError: the file is damaged.
        """


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """A file and its format."""

    path: Path
    format: Format
    rows: FileRows


Entry = Callable[[Mapping[str, Any], str], ForeignRow]
_OF_ENTRIES: dict[str, Entry] = {"vllm": vllm_row, "axolotl": axolotl_row}


def open_foreign(path: Path, *, given: FormatName | None = None, compression: Compression | None = None) -> ForeignFile:
    """The rows of a file.

    Args:
        given: its format; None recognises it.
        compression: settings that packed DistillKit's files.

    Raises:
        InputError: no such file, or none of these formats; one line that names what was found.
    """
    if is_parquet(path):
        return _parquet(path, given, compression)
    entries = JsonEntries(path)
    if not len(entries):
        raise InputError(f"{path}: has no entries; give a file with log-probabilities")
    first = entries[0]
    name = given or _format_of(first)
    if name not in _OF_ENTRIES:
        keys = f"an object with {', '.join(map(repr, first))[:200]}" if isinstance(first, dict) else "no object"
        raise InputError(
            f"{path}: entry 0 is {keys}; expected JSON of vLLM (prompt_logprobs, choices, outputs) or of axolotl "
            f"({IDS}, logprobs), or a parquet file"
        )
    return ForeignFile(path=path, format=FORMATS[name], rows=_Entries(path, len(entries), _OF_ENTRIES[name], entries))


def _format_of(entry: Any) -> str:
    if not isinstance(entry, dict):
        return ""
    # an entry of axolotl may have been made from a response of vLLM, and keep its other fields
    return "axolotl" if values_column(entry) is not None else "vllm" if is_vllm(entry) else ""


def _parquet(path: Path, given: FormatName | None, compression: Compression | None) -> ForeignFile:
    file = ParquetRows(path)
    names = set(file.names)
    if given in (None, "distillkit") and TOKENS in names and {*COMPRESSED} <= names:
        if compression is None:
            raise InputError(
                f"{path}: is packed by DistillKit, whose bytes have no meaning without compression_config.yaml; put it "
                "beside the file or give it (--compression)"
            )
        return ForeignFile(
            path=path, format=FORMATS["distillkit"], rows=DistillKitFile(path=path, compression=compression)
        )
    if given in (None, "distillkit") and TOKENS in names and {*PLAIN} <= names:
        return ForeignFile(path=path, format=FORMATS["distillkit"], rows=DistillKitFile(path=path, compression=None))
    if {*LEGACY} <= names:
        raise InputError(
            f"{path}: has the columns {', '.join(LEGACY)} of DistillKit's first version, which are not read; write the "
            f"file again with its current version, or with the columns {TOKENS}, {' and '.join(PLAIN)}"
        )
    if given in (None, "axolotl") and any(name == IDS or name.endswith("logprobs") for name in names):
        rows = _Entries(path, len(file), axolotl_row, _ParquetEntries(file, file.names))
        return ForeignFile(path=path, format=FORMATS["axolotl"], rows=rows)
    raise InputError(
        f"{path}: has the columns {', '.join(file.names)[:200]}; expected {TOKENS} with {' and '.join(COMPRESSED)} or "
        f"{' and '.join(PLAIN)} (DistillKit), or {IDS} with logprobs (axolotl)"
    )


@dataclass(frozen=True)
class _ParquetEntries:
    file: ParquetRows
    names: list[str]

    def __iter__(self) -> Iterator[Any]:
        return self.file.entries(self.names)


@dataclass(frozen=True)
class _Entries:
    """Entries of plain values, each made a row by the function of its format."""

    path: Path
    count: int
    read: Entry
    entries: "JsonEntries | _ParquetEntries"

    def __len__(self) -> int:
        return self.count

    def rows(self) -> Iterator[ForeignRow]:
        for number, entry in enumerate(self.entries):
            where = f"{self.path} row {number}"
            if isinstance(entry, dict):
                yield self.read(entry, where)
            else:
                yield unusable_row(where, None, f"the entry is {entry!r:.60}, expected an object")
