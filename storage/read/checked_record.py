"""A record whose fields fit one another, for commands that show a store of anyone."""

from alignkd.storage.errors import CorruptStoreError, RecordError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record


def checked_record(reader: StoreReader, position: int) -> Record:
    """`reader[position]` with the checks that its writer made: a checksum does not say who wrote the bytes.

    Raises:
        IndexError: the position does not exist.
        CorruptStoreError: the record is damaged, or no writer writes it.
    """
    record = reader[position]
    try:
        record.recheck()
    except RecordError as error:
        raise CorruptStoreError(
            f"store {reader.files.location}, record {position} (index {record.index}): {error}; restore the shard from "
            "a copy, or dump it again"
        ) from error
    return record
