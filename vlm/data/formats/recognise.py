"""The format of a data file: by its first bytes, then by its suffix."""

from pathlib import Path

from alignkd.disk.opening import NotRegularError, open_regular
from alignkd.vlm.data.formats.entry_file import BytesRead, EntryFile
from alignkd.vlm.data.formats.json_file import JsonFile
from alignkd.vlm.data.formats.paths import kind_of_name
from alignkd.vlm.data.json.gzipped import MAGIC
from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.errors import InputError, unreadable

WANTED = "expected JSON, JSON lines, Parquet, or a tar of WebDataset"
_MARK_OF_TAR = slice(257, 262)


def kind_of_file(path: Path) -> str:
    """`json`, `parquet` or `tar`.

    Raises:
        InputError: no such file, or one of another format, which is named.
    """
    head = _head(path)
    # JSON may hold any word that other formats begin with; what else is wrong with it is found when it is read
    if head.startswith(MAGIC) or (head.lstrip()[:1] in (b"[", b"{") and b"\0" not in head):
        return "json"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[_MARK_OF_TAR] == b"ustar":
        return "tar"
    if (found := known_format(head)) is not None:
        raise InputError(f"{path}: {found.name}, {WANTED}; {found.step}")
    named = kind_of_name(path)
    return named if named in ("parquet", "tar") else "json"


def open_file(path: Path, kind: str, progress: BytesRead | None) -> EntryFile:
    """The entries of a file of `kind_of_file`.

    Raises:
        InputError: it is damaged, or has no entries that can be read.
    """
    if kind == "parquet":
        from alignkd.vlm.data.formats.parquet.rows import ParquetEntries

        return ParquetEntries(path)
    if kind == "tar":
        from alignkd.vlm.data.formats.tar.tar_file import TarEntries

        return TarEntries(path, progress)
    return JsonFile(path, progress)


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read(HEAD_BYTES)
    except NotRegularError as error:
        raise InputError(f"{path}: {error.strerror}; give a file of data") from error
    except OSError as error:
        raise unreadable(path, error) from error
