"""Parquet files, a few rows at a time; the one module here that imports pyarrow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignkd.disk.opening import NotRegularError, open_regular
from alignkd.vlm.errors import InputError, unreadable

ROWS_AT_ONCE = 16
MAGIC = b"PAR1"
SUFFIX = ".parquet"


def is_parquet(path: Path) -> bool:
    """Whether a file is parquet by its suffix or its first bytes; a file that cannot be read is none."""
    try:
        with open_regular(path) as stream:
            return path.suffix == SUFFIX or stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return path.suffix == SUFFIX


class ParquetRows:
    """The rows of one parquet file.

    Raises:
        InputError: no such file, or not parquet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            open_regular(path).close()
            self._file = pq.ParquetFile(path)
        except NotRegularError as error:
            raise InputError(f"{path}: {error.strerror}; give a parquet file") from error
        except OSError as error:
            raise unreadable(path, error) from error
        except pa.ArrowException as error:
            raise InputError(f"{path}: not a complete parquet file ({_first_line(error)}); copy it again") from error

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self._file.schema_arrow.names)

    def columns(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Of every row the value of each column as an Arrow array; None where it is null.

        Raises:
            InputError: a column that is not a list, or damaged bytes.
        """
        for name in names:
            if not pa.types.is_list(kind := self._file.schema_arrow.field(name).type):
                raise InputError(f"{self.path}: column {name} is {kind}, expected lists")
        for batch in self._batches(list(names)):
            for row in range(batch.num_rows):
                yield {name: batch.column(name)[row].values for name in names}

    def entries(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row as plain values by column."""
        for batch in self._batches(list(names)):
            yield from batch.to_pylist()

    def _batches(self, names: list[str]) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(batch_size=ROWS_AT_ONCE, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path}: damaged ({_first_line(error)}); copy it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
